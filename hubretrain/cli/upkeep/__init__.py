"""Commands that look after what is there: `modules` the backbones, `runs` the runs, `doctor` all.

The command line loads each when it is used.
"""

"""The server's rooms: what a request may ask for, how it waits, and the page; an extra.

app.py       the routes, on FastAPI              limits.py   how large, how slow, how many
batches.py   the bounded queue before the model  forms.py    TensorFlow Serving's REST form
protocol.py  HTTP that does not wait for ever    counts.py   what /metrics tells
"""

from .html import write_check_page as write_check_page
from .report import write_evaluation as write_evaluation
from .report import write_report as write_report

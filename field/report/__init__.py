"""What field tests found, as one page of HTML that needs nothing else.

values     untrusted JSON, one value at a time
clock      where on a time axis a record lies, whatever the device's clock did
runs       `records.jsonl` of each device -> `DeviceRun`
figures    `DeviceRun` -> `Figures` of each variant
comparison figures beside those of an earlier report
scales, svg, *_chart    drawings
pictures   routed pictures with what was answered about them
page       all of it -> HTML
"""

from field.report.page import write_report

__all__ = ["write_report"]

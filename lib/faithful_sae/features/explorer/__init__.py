"""The face of an index of features: one implementation (static/: plain JavaScript and CSS), two
hosts.

    data.py      what both hosts show, as JSON
    widget.py    Explorer: in a notebook
    page.py      write_explorer: a folder of files to open in a browser
    fallback.py  feature_html, list_html: static HTML where no widget runs
"""

"""Tools of a request: what may be declared, how models call them, and how a call is read from an answer.

`declared` checks declarations; `format` says what a format is, with a file for each and `registry` to choose; `choice`
and `grammar` hold an answer to what may be called; `reader` finds the call in an answer as it is written.
"""

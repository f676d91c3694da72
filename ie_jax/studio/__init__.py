"""A page on which a person edits a photo.

command    the command: its settings, and the server
page       what is seen
handlers   what each control does
work       what the page asks for: photos inverted once and edited many times
words      texts that the page shows: what differs between prompts, the command that repeats an edit
"""

"""Pages that need nothing but themselves: a template, and what is shown in it. What they report is made elsewhere."""

"""The page: what an operator sees and does in a browser. Templates and htmx, without a build step.

A page is one template that includes its living part; htmx asks for that part alone, at the same address.
"""

"""Clip tables out of what data sets publish, and a look at any table before a run is made of it."""

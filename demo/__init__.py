"""A small rendered world: a person at a table acts with an object, seen by a head camera and from outside.

`actions` says what moves how, `world` draws people, rooms and performances and renders them, `dataset` writes them
as untrimmed videos with a clip table.
"""

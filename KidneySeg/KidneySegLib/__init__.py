"""KidneySeg's engine: from a CT to two kidneys, without Slicer.

Importing this package loads neither torch nor SimpleITK; each room loads what it needs.
"""

__version__ = "0.1.0"

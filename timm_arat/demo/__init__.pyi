from ._page import launch as launch

from ._pgd import PGD as PGD
from ._search import Perturbed as Perturbed
from ._search import search as search

from ._assemble import assemble as assemble
from ._export import export as export
from ._publish import Published as Published
from ._publish import publish as publish
from ._robust import RobustList as RobustList
from ._robust import RobustRow as RobustRow
from ._robust import list_robust as list_robust

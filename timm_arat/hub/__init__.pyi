from ._assemble import assemble as assemble
from ._export import export as export
from ._publish import Published as Published
from ._publish import publish as publish

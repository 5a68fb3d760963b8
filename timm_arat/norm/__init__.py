"""Split norms: two branches of BatchNorm (or affine) parameters in one timm backbone.

`main` serves adversarial inputs and is the branch that is deployed; `aux` serves clean inputs. A typical life:

    model = convert_split_norm(timm.create_model('resnet18'))
    with norm_branch(model, 'main'):
        x_adv = attack(model, x, y)
    with norm_branch(model, 'both'):
        logits_adv, logits_clean = model(torch.cat([x_adv, x])).chunk(2)
    merge_split_norm(model)  # a plain timm model again

_table     which norm classes can be split, and the class each one becomes
_split     the split norm itself: one module, two parameter sets, three modes
_shared    a split of one half only, affine parameters or statistics
_replay    gradient checkpointing: the recompute runs in the mode of its forward
_walk      finding split norms and BatchNorms; detecting a split that other code has broken
_convert   plain -> split
_branch    choosing the mode
_merge     split -> plain
_load      plain and split checkpoints into a split model
"""

from ._branch import branch_if_split as branch_if_split
from ._branch import norm_branch as norm_branch
from ._convert import convert_split_norm as convert_split_norm
from ._load import load_aux_norm as load_aux_norm
from ._load import load_split_state_dict as load_split_state_dict
from ._merge import merge_split_norm as merge_split_norm
from ._shared import Share as Share
from ._split import SplitNorm as SplitNorm
from ._walk import batch_norms as batch_norms
from ._walk import check_split_norm as check_split_norm
from ._walk import is_split as is_split
from ._walk import split_norms as split_norms

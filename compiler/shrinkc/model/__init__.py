"""Structure of the models that shrinkc compiles, with one file per family."""

from shrinkc.model.config import Llama3RopeScaling as Llama3RopeScaling
from shrinkc.model.config import LlamaConfig as LlamaConfig
from shrinkc.model.families import FAMILIES as FAMILIES
from shrinkc.model.families import SUPPORTED as SUPPORTED
from shrinkc.model.family import ATTENTION as ATTENTION
from shrinkc.model.family import MLP as MLP
from shrinkc.model.family import Family as Family
from shrinkc.model.structure import EMBEDDING as EMBEDDING
from shrinkc.model.structure import FIELDS as FIELDS
from shrinkc.model.structure import FINAL_NORM as FINAL_NORM
from shrinkc.model.structure import HEAD as HEAD
from shrinkc.model.structure import NAMES as NAMES
from shrinkc.model.structure import SLOT_MODULES as SLOT_MODULES
from shrinkc.model.structure import bias_shapes as bias_shapes
from shrinkc.model.structure import dimensions as dimensions
from shrinkc.model.structure import family_of as family_of
from shrinkc.model.structure import layer_shapes as layer_shapes
from shrinkc.model.structure import layer_windows as layer_windows
from shrinkc.model.structure import local_rope_layers as local_rope_layers
from shrinkc.model.structure import matrix_shapes as matrix_shapes
from shrinkc.model.structure import module_name as module_name
from shrinkc.model.structure import norm_shapes as norm_shapes
from shrinkc.model.structure import slot_shapes as slot_shapes
from shrinkc.model.structure import slots_with_bias as slots_with_bias
from shrinkc.model.structure import window_notes as window_notes

"""Loading of torch models, and saving as plain Hugging Face directories."""

from shrinkc.checkpoints.libraries import cached as cached
from shrinkc.checkpoints.libraries import check_device as check_device
from shrinkc.checkpoints.libraries import need as need
from shrinkc.checkpoints.libraries import suited_threads as suited_threads
from shrinkc.checkpoints.libraries import threads_within as threads_within
from shrinkc.checkpoints.libraries import use_threads as use_threads
from shrinkc.checkpoints.libraries import versions as versions
from shrinkc.checkpoints.loading import DTYPES as DTYPES
from shrinkc.checkpoints.loading import Loaded as Loaded
from shrinkc.checkpoints.loading import family_of_torch as family_of_torch
from shrinkc.checkpoints.loading import load as load
from shrinkc.checkpoints.loading import load_tokenizer as load_tokenizer
from shrinkc.checkpoints.loading import located as located
from shrinkc.checkpoints.loading import resolve as resolve
from shrinkc.checkpoints.loading import stored_dtype as stored_dtype
from shrinkc.checkpoints.loading import torch_dtype as torch_dtype
from shrinkc.checkpoints.loading_line import README as README
from shrinkc.checkpoints.loading_line import Loading as Loading
from shrinkc.checkpoints.packed import is_packed as is_packed
from shrinkc.checkpoints.packed import link_files as link_files
from shrinkc.checkpoints.packed import pack_step as pack_step
from shrinkc.checkpoints.packed import weights_file as weights_file
from shrinkc.checkpoints.packed import write_gptq as write_gptq
from shrinkc.checkpoints.saving import Savable as Savable
from shrinkc.checkpoints.saving import on_disk as on_disk
from shrinkc.checkpoints.saving import save as save

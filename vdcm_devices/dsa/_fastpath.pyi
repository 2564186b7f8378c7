# The extension module of the data path (descriptor.h and queue.h have the declarations).
from typing import Any

ffi: Any
lib: Any

# The extension module of the data path (store.h and queue.h have the declarations).
from typing import Any

ffi: Any
lib: Any

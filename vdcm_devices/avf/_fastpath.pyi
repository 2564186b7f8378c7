# The extension module of the data path (port.h has the declarations).
from typing import Any

ffi: Any
lib: Any

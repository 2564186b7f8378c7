# The extension module that native/ is built into (native/native.h has the declarations).
from typing import Any

ffi: Any
lib: Any

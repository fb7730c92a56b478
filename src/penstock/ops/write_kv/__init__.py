"""Writing a step's keys and values into the paged pool."""

from penstock.ops.op import Op
from penstock.ops.write_kv import native, reference

write_kv = Op("write_kv", reference.write_kv, native=native.write_kv)

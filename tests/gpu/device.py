"""Memory on the first GPU by the CUDA driver alone: no framework is needed to run an engine."""

import ctypes

import numpy

_CUDA = ctypes.CDLL("libcuda.so.1")


def _call(name, *arguments):
    status = getattr(_CUDA, name)(*arguments)
    if status:
        raise RuntimeError(f"{name}: CUDA error {status}")


def use_primary_context():
    """The context that the CUDA runtime, and so TensorRT, uses too."""
    context = ctypes.c_void_p()
    _call("cuInit", 0)
    _call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
    _call("cuCtxSetCurrent", context)


class Array:
    """A copy of a numpy array on the GPU."""

    def __init__(self, host):
        self.host = numpy.ascontiguousarray(host)
        self._pointer = ctypes.c_uint64()
        _call("cuMemAlloc_v2", ctypes.byref(self._pointer), ctypes.c_size_t(self.host.nbytes))
        data = ctypes.c_void_p(self.host.ctypes.data)
        _call("cuMemcpyHtoD_v2", self._pointer, data, ctypes.c_size_t(self.host.nbytes))

    @property
    def address(self):
        return self._pointer.value

    def numpy(self):
        """What is on the GPU now, when all work there is done."""
        _call("cuCtxSynchronize")
        out = numpy.empty_like(self.host)
        data = ctypes.c_void_p(out.ctypes.data)
        _call("cuMemcpyDtoH_v2", data, self._pointer, ctypes.c_size_t(out.nbytes))
        return out

    def free(self):
        _call("cuMemFree_v2", self._pointer)

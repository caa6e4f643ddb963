// The Python side of a compiled kernel: launch(problem, stream, *addresses), raw addresses in.
// It speaks to Python directly: pybind11 would take as long to compile as ten kernels.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstddef>
#include <cstdint>

// Every kernel defines this one. Returns nullptr, or what went wrong as a static text.
const char* convsmith_launch(const void* problem, std::size_t problem_bytes,
                             const std::uintptr_t* addresses, std::size_t address_count,
                             std::uintptr_t stream);

namespace {

constexpr Py_ssize_t kMostAddresses = 16;

PyObject* launch(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
    const Py_ssize_t address_count = count - 2;
    if (address_count < 0 || address_count > kMostAddresses) {
        return PyErr_Format(PyExc_TypeError,
                            "launch takes the problem, the stream and at most %zd addresses, but "
                            "was given %zd arguments",
                            kMostAddresses, count);
    }
    char* problem = nullptr;
    Py_ssize_t problem_bytes = 0;
    if (PyBytes_AsStringAndSize(arguments[0], &problem, &problem_bytes) != 0) {
        return nullptr;
    }
    // The stream, then the addresses.
    std::uintptr_t handles[1 + kMostAddresses];
    for (Py_ssize_t i = 0; i < 1 + address_count; ++i) {
        handles[i] = PyLong_AsSize_t(arguments[1 + i]);
        if (handles[i] == static_cast<std::uintptr_t>(-1) && PyErr_Occurred() != nullptr) {
            return nullptr;
        }
    }
    const char* error =
        convsmith_launch(problem, static_cast<std::size_t>(problem_bytes), handles + 1,
                         static_cast<std::size_t>(address_count), handles[0]);
    if (error != nullptr) {
        PyErr_SetString(PyExc_RuntimeError, error);
        return nullptr;
    }
    Py_RETURN_NONE;
}

// A METH_FASTCALL function has another type than PyCFunction; this is how CPython itself casts it.
PyMethodDef methods[] = {
    {"launch", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(launch)), METH_FASTCALL,
     "launch(problem, stream, *addresses)\n--\n\nLaunches the kernel on a CUDA stream: the "
     "problem's bytes, the stream's handle, and the addresses of its operands, 0 where one is "
     "absent."},
    {nullptr, nullptr, 0, nullptr},
};

#define CONVSMITH_TEXT_OF(name) #name
#define CONVSMITH_TEXT(macro) CONVSMITH_TEXT_OF(macro)
#define CONVSMITH_INITIALISER_OF(name) PyInit_##name
#define CONVSMITH_INITIALISER(macro) CONVSMITH_INITIALISER_OF(macro)

PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                          CONVSMITH_TEXT(TORCH_EXTENSION_NAME),
                          nullptr,
                          0,
                          methods,
                          nullptr,
                          nullptr,
                          nullptr,
                          nullptr};

}  // namespace

PyMODINIT_FUNC CONVSMITH_INITIALISER(TORCH_EXTENSION_NAME)() {
    return PyModuleDef_Init(&definition);
}

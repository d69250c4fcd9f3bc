/* The repository agent of Triton: hands each action to Python, strongroom.triton.agent, and its error to Triton.
 *
 * Python is opened when it is first needed, RTLD_GLOBAL: Triton opens agents RTLD_LOCAL, and the extension
 * modules of a libpython that came with one of those would not find its symbols. Nothing of Python.h is used, so
 * that no development package has to be there: what is called is in Python's stable ABI, but for its start.
 * Linked with -z nodelete: Triton closes an agent with the last of its models, and Python cannot be closed.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <wchar.h>

#include "tritonrepoagent.h"

#if !defined(AGENT_LIBPYTHON) || !defined(AGENT_PYTHON)
#error "say -DAGENT_LIBPYTHON and -DAGENT_PYTHON, as `strongroom triton install` does"
#endif

typedef struct PyObject PyObject;
typedef struct PyThreadState PyThreadState;
typedef ssize_t Py_ssize_t;

/* The same from Python 3.8 to 3.14 (cpython/initconfig.h). */
typedef struct {
  int kind; /* 0: it went well */
  const char *function, *message;
  int exit_code;
} PyStatus;

typedef struct {
  int kind, parse_argv, isolated, use_environment, configure_locale, coerce_c_locale;
  int coerce_c_locale_warn, utf8_mode, dev_mode, allocator;
  int more[16]; /* none yet */
} PyPreConfig;

/* Has more in each version, 450 bytes in 3.13; Python alone looks into it. */
typedef union {
  char bytes[16384];
  max_align_t aligned;
} PyConfig;

/* Name, result and arguments of what is called of Python. */
#define PYTHON(X)                                                            \
  X(Py_IsInitialized, int, (void))                                           \
  X(PyPreConfig_InitIsolatedConfig, void, (PyPreConfig *))                   \
  X(Py_PreInitialize, PyStatus, (const PyPreConfig *))                       \
  X(PyConfig_InitIsolatedConfig, void, (PyConfig *))                         \
  X(PyConfig_Clear, void, (PyConfig *))                                      \
  X(Py_InitializeFromConfig, PyStatus, (const PyConfig *))                   \
  X(Py_SetProgramName, void, (const wchar_t *))                              \
  X(Py_DecodeLocale, wchar_t *, (const char *, size_t *))                    \
  X(Py_DecRef, void, (PyObject *))                                           \
  X(PyEval_SaveThread, PyThreadState *, (void))                              \
  X(PyGILState_Ensure, int, (void))                                          \
  X(PyGILState_Release, void, (int))                                         \
  X(PyImport_ImportModule, PyObject *, (const char *))                       \
  X(PyObject_CallMethod, PyObject *, (PyObject *, const char *, const char *, ...)) \
  X(PyObject_GetAttrString, PyObject *, (PyObject *, const char *))          \
  X(PyObject_Str, PyObject *, (PyObject *))                                  \
  X(PyUnicode_AsUTF8AndSize, const char *, (PyObject *, Py_ssize_t *))       \
  X(PyUnicode_DecodeFSDefault, PyObject *, (const char *))                   \
  X(PyUnicode_EncodeFSDefault, PyObject *, (PyObject *))                     \
  X(PyBytes_AsString, char *, (PyObject *))                                  \
  X(PyLong_AsLong, long, (PyObject *))                                       \
  X(PyDict_New, PyObject *, (void))                                          \
  X(PyDict_SetItemString, int, (PyObject *, const char *, PyObject *))       \
  X(PyErr_Fetch, void, (PyObject **, PyObject **, PyObject **))              \
  X(PyErr_NormalizeException, void, (PyObject **, PyObject **, PyObject **)) \
  X(PyErr_Clear, void, (void))

#define POINTER(name, result, arguments) static result(*p##name) arguments;
PYTHON(POINTER)

static pthread_mutex_t starting = PTHREAD_MUTEX_INITIALIZER;
static int started;

static TRITONSERVER_Error *failure(const char *what, const char *detail) {
  char text[1024];
  snprintf(text, sizeof text, "strongroom: %s%s%s", what, detail ? ": " : "", detail ? detail : "");
  return TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INTERNAL, text);
}

static TRITONSERVER_Error *find_symbols(void *library) {
#define FIND(name, result, arguments)                        \
  if (!(p##name = (result(*) arguments)dlsym(library, #name))) \
    return failure("this Python cannot be embedded; it lacks " #name, NULL);
  PYTHON(FIND)
  return NULL;
}

/* Python as the interpreter at AGENT_PYTHON would be, a virtual environment too, and without what the
 * environment of the server says for others, the stubs of its Python backend above all: isolated, as python -I.
 * The locale stays the server's; in containers it knows nothing but ASCII, and files of models have any names.
 */
static PyStatus initialize(void) {
  PyPreConfig before = {0};
  pPyPreConfig_InitIsolatedConfig(&before);
  before.utf8_mode = 1;
  PyStatus status = pPy_PreInitialize(&before);
  if (status.kind) return status;
  wchar_t *program = pPy_DecodeLocale(AGENT_PYTHON, NULL); /* never freed */
  if (!program) return (PyStatus){.kind = 1, .message = "no memory"};
  pPy_SetProgramName(program);
  PyConfig config = {0};
  pPyConfig_InitIsolatedConfig(&config); /* signals stay Triton's, too */
  status = pPy_InitializeFromConfig(&config);
  pPyConfig_Clear(&config);
  return status;
}

static TRITONSERVER_Error *start_python(void) {
  static PyStatus status; /* once it has failed it is not tried again: Python is half started then */
  if (!status.kind) status = initialize();
  if (status.kind) return failure("Python does not start at " AGENT_PYTHON, status.message);
  pPyEval_SaveThread();
  return NULL;
}

static TRITONSERVER_Error *start(void) {
  TRITONSERVER_Error *error = NULL;
  pthread_mutex_lock(&starting);
  if (!started) {
    /* A server that runs inside of Python has one already, and there can be no second. */
    int (*initialized)(void) = (int (*)(void))dlsym(RTLD_DEFAULT, "Py_IsInitialized");
    int inside = initialized && initialized();
    void *library =
        inside ? RTLD_DEFAULT : dlopen(AGENT_LIBPYTHON, RTLD_NOW | RTLD_GLOBAL);
    if (!inside && !library)
      error = failure("Python cannot be opened", dlerror());
    else if (!(error = find_symbols(library)) && !inside)
      error = start_python();
    started = !error;
  }
  pthread_mutex_unlock(&starting);
  return error;
}

/* The exception that is set, as an error of Triton; its text is made by strongroom.triton.agent. */
static TRITONSERVER_Error *python_error(void) {
  PyObject *kind = NULL, *value = NULL, *traceback = NULL;
  TRITONSERVER_Error *error = NULL;
  pPyErr_Fetch(&kind, &value, &traceback);
  pPyErr_NormalizeException(&kind, &value, &traceback);
  PyObject *said = value ? pPyObject_Str(value) : NULL;
  PyObject *number = value ? pPyObject_GetAttrString(value, "code") : NULL;
  const char *text = said ? pPyUnicode_AsUTF8AndSize(said, NULL) : NULL;
  if (text && number)
    error = TRITONSERVER_ErrorNew((int)pPyLong_AsLong(number), text);
  else
    error = failure("cannot be used in " AGENT_PYTHON, text);
  pPyErr_Clear();
  PyObject *all[] = {kind, value, traceback, said, number};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++)
    if (all[i]) pPy_DecRef(all[i]);
  return error;
}

static PyObject *parameters_of(
    TRITONREPOAGENT_Agent *agent, TRITONREPOAGENT_AgentModel *model, TRITONSERVER_Error **error) {
  PyObject *found = pPyDict_New();
  uint32_t count = 0;
  if (found) *error = TRITONREPOAGENT_ModelParameterCount(agent, model, &count);
  for (uint32_t i = 0; found && !*error && i < count; i++) {
    const char *name = NULL, *value = NULL;
    if ((*error = TRITONREPOAGENT_ModelParameter(agent, model, i, &name, &value))) break;
    PyObject *text = pPyUnicode_DecodeFSDefault(value);
    if (!text || pPyDict_SetItemString(found, name, text)) *error = python_error();
    if (text) pPy_DecRef(text);
  }
  return found;
}

static TRITONSERVER_Error *load(
    TRITONREPOAGENT_Agent *agent, TRITONREPOAGENT_AgentModel *model, PyObject *module) {
  const char *location = NULL;
  TRITONREPOAGENT_ArtifactType type = 0;
  TRITONSERVER_Error *error =
      TRITONREPOAGENT_ModelRepositoryLocation(agent, model, &type, &location);
  if (error) return error;
  PyObject *parameters = parameters_of(agent, model, &error);
  PyObject *place = NULL, *path = NULL;
  if (!error) {
    PyObject *from = pPyUnicode_DecodeFSDefault(location);
    if (parameters && from)
      place = pPyObject_CallMethod(
          module, "load", "KOiO", (unsigned long long)(uintptr_t)model, from,
          type == TRITONREPOAGENT_ARTIFACT_FILESYSTEM, parameters);
    if (from) pPy_DecRef(from);
    path = place ? pPyUnicode_EncodeFSDefault(place) : NULL;
    const char *directory = path ? pPyBytes_AsString(path) : NULL;
    error = directory ? TRITONREPOAGENT_ModelRepositoryUpdate(
                            agent, model, TRITONREPOAGENT_ARTIFACT_FILESYSTEM, directory)
                      : python_error();
  }
  if (parameters) pPy_DecRef(parameters);
  if (place) pPy_DecRef(place);
  if (path) pPy_DecRef(path);
  return error;
}

static TRITONSERVER_Error *call(
    TRITONREPOAGENT_Agent *agent, TRITONREPOAGENT_AgentModel *model, const char *what) {
  TRITONSERVER_Error *error = start();
  if (error) return error;
  int state = pPyGILState_Ensure();
  PyObject *module = pPyImport_ImportModule("strongroom.triton.agent");
  if (!module) {
    error = python_error();
  } else if (!what) {
    error = load(agent, model, module);
  } else {
    PyObject *said =
        pPyObject_CallMethod(module, what, "K", (unsigned long long)(uintptr_t)model);
    if (!said) error = python_error();
    if (said) pPy_DecRef(said);
  }
  if (module) pPy_DecRef(module);
  pPyGILState_Release(state);
  return error;
}

TRITONSERVER_Error *TRITONREPOAGENT_Initialize(TRITONREPOAGENT_Agent *agent) {
  uint32_t major = 0, minor = 0;
  TRITONSERVER_Error *error = TRITONREPOAGENT_ApiVersion(&major, &minor);
  if (error) return error;
  if (major != 0 || minor < 1)
    return TRITONSERVER_ErrorNew(
        TRITONSERVER_ERROR_UNSUPPORTED, "strongroom: this Triton has another interface for agents");
  return call(agent, NULL, "start");
}

TRITONSERVER_Error *TRITONREPOAGENT_ModelAction(
    TRITONREPOAGENT_Agent *agent, TRITONREPOAGENT_AgentModel *model,
    TRITONREPOAGENT_ActionType action) {
  switch (action) {
    case TRITONREPOAGENT_ACTION_LOAD:
      return call(agent, model, NULL);
    case TRITONREPOAGENT_ACTION_LOAD_COMPLETE:
      return call(agent, model, "loaded");
    case TRITONREPOAGENT_ACTION_LOAD_FAIL:
    case TRITONREPOAGENT_ACTION_UNLOAD_COMPLETE:
      return call(agent, model, "done");
    default:
      return NULL;
  }
}

TRITONSERVER_Error *TRITONREPOAGENT_ModelFinalize(
    TRITONREPOAGENT_Agent *agent, TRITONREPOAGENT_AgentModel *model) {
  return call(agent, model, "done");
}

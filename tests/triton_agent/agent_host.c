/* What Triton is to the repository agent, and nothing else: it opens the library as Triton does and calls its
 * actions, on threads of their own, as the lines of its input say:
 *
 *   open LIBRARY                          "opened", or "error CODE TEXT"
 *   load MODEL LOCATION [NAME=VALUE …]    "ok DIRECTORY", or "error CODE TEXT"
 *   action MODEL NUMBER | final MODEL     "ok", or "error CODE TEXT"
 *   together COUNT                        the next lines at once, each answered in its turn
 *   spoil FUNCTION                        which of the server's functions fails from now on; "spoil -" none
 *   version MAJOR MINOR                   of the interface
 *   close                                 "closed": as Triton does with the last model
 *
 * At the end: "errors LEFT", those that nobody has deleted, and "log LINE" for each line of the log.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tritonrepoagent.h"

#define SERVER __attribute__((visibility("default"), used))
enum { MODELS = 64, PARAMETERS = 16 };

struct TRITONSERVER_Error {
  int code;
  char *text;
};

struct TRITONREPOAGENT_AgentModel {
  char *location, *updated, *names[PARAMETERS], *values[PARAMETERS];
  int remote;
  uint32_t count;
};

typedef struct {
  char *line;
  TRITONSERVER_Error *error;
} Task;

static atomic_int errors;
static const char *spoiled = "-";
static uint32_t major_version, minor_version = 1;
static void *library;
static struct TRITONREPOAGENT_AgentModel models[MODELS];

static TRITONSERVER_Error *fail_if(const char *name) {
  return strcmp(spoiled, name) ? NULL : TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INTERNAL, name);
}

SERVER TRITONSERVER_Error *TRITONSERVER_ErrorNew(TRITONSERVER_Error_Code code, const char *message) {
  TRITONSERVER_Error *error = malloc(sizeof *error);
  *error = (TRITONSERVER_Error){code, strdup(message)};
  errors++;
  return error;
}

SERVER TRITONSERVER_Error *TRITONSERVER_LogMessage(
    int level, const char *file, int line, const char *message) {
  (void)file, (void)line;
  printf("log %d %s\n", level, message);
  return NULL;
}

SERVER TRITONSERVER_Error *TRITONREPOAGENT_ApiVersion(uint32_t *major, uint32_t *minor) {
  *major = major_version, *minor = minor_version;
  return fail_if("ApiVersion");
}

SERVER TRITONSERVER_Error *TRITONREPOAGENT_ModelRepositoryLocation(
    TRITONREPOAGENT_Agent *agent, TRITONREPOAGENT_AgentModel *model,
    TRITONREPOAGENT_ArtifactType *type, const char **location) {
  (void)agent;
  *type = model->remote ? 1 : TRITONREPOAGENT_ARTIFACT_FILESYSTEM;
  *location = model->location;
  return fail_if("ModelRepositoryLocation");
}

SERVER TRITONSERVER_Error *TRITONREPOAGENT_ModelRepositoryUpdate(
    TRITONREPOAGENT_Agent *agent, TRITONREPOAGENT_AgentModel *model,
    TRITONREPOAGENT_ArtifactType type, const char *location) {
  (void)agent;
  if (type != TRITONREPOAGENT_ARTIFACT_FILESYSTEM) abort();
  free(model->updated);
  model->updated = strdup(location);
  return fail_if("ModelRepositoryUpdate");
}

SERVER TRITONSERVER_Error *TRITONREPOAGENT_ModelParameterCount(
    TRITONREPOAGENT_Agent *agent, TRITONREPOAGENT_AgentModel *model, uint32_t *count) {
  (void)agent;
  *count = model->count;
  return fail_if("ModelParameterCount");
}

SERVER TRITONSERVER_Error *TRITONREPOAGENT_ModelParameter(
    TRITONREPOAGENT_Agent *agent, TRITONREPOAGENT_AgentModel *model, uint32_t index,
    const char **name, const char **value) {
  (void)agent;
  if (index >= model->count) abort();
  *name = model->names[index], *value = model->values[index];
  return fail_if("ModelParameter");
}

static void *symbol(const char *name) {
  void *found = library ? dlsym(library, name) : NULL;
  if (!found) abort();
  return found;
}

static TRITONSERVER_Error *act(TRITONREPOAGENT_AgentModel *model, int action) {
  TRITONSERVER_Error *(*call)(TRITONREPOAGENT_Agent *, TRITONREPOAGENT_AgentModel *, int) =
      symbol("TRITONREPOAGENT_ModelAction");
  return call(NULL, model, action);
}

static void *run(void *given) {
  Task *task = given;
  char *rest, *verb = strtok_r(task->line, " \n", &rest), *first = strtok_r(NULL, " \n", &rest);
  if (!strcmp(verb, "open")) {
    if (!(library = dlopen(first, RTLD_NOW | RTLD_LOCAL))) abort();
    TRITONSERVER_Error *(*call)(TRITONREPOAGENT_Agent *) = symbol("TRITONREPOAGENT_Initialize");
    task->error = call(NULL);
    return NULL;
  }
  TRITONREPOAGENT_AgentModel *model = &models[atoi(first)];
  if (!strcmp(verb, "final")) {
    TRITONSERVER_Error *(*call)(TRITONREPOAGENT_Agent *, TRITONREPOAGENT_AgentModel *) =
        symbol("TRITONREPOAGENT_ModelFinalize");
    task->error = call(NULL, model);
  } else if (!strcmp(verb, "action")) {
    task->error = act(model, atoi(strtok_r(NULL, " \n", &rest)));
  } else {
    model->location = strtok_r(NULL, " \n", &rest);
    model->remote = !strncmp(model->location, "s3:", 3);
    model->count = 0;
    for (char *one; (one = strtok_r(NULL, " \n", &rest));) {
      char *value = strchr(one, '=');
      *value = 0;
      model->names[model->count] = one, model->values[model->count++] = value + 1;
    }
    task->error = act(model, TRITONREPOAGENT_ACTION_LOAD);
  }
  if (!strcmp(verb, "load") && !task->error) task->line = model->updated;
  return NULL;
}

static void answer(Task *task, const char *verb) {
  if (task->error) {
    printf("error %d %s\n", task->error->code, task->error->text);
    free(task->error->text);
    free(task->error);
    errors--;
  } else {
    printf("%s%s%s\n", "ok", verb[0] == 'l' ? " " : "", verb[0] == 'l' ? task->line : "");
  }
}

static char *next(void) {
  char *line = NULL;
  size_t size = 0;
  if (getline(&line, &size, stdin) > 0) return line;
  free(line);
  return NULL;
}

int main(void) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  int count = 1;
  for (char *line; (line = next());) {
    if (!strncmp(line, "together ", 9)) {
      count = atoi(line + 9);
    } else if (!strncmp(line, "spoil ", 6)) {
      line[strcspn(line, "\n")] = 0;
      spoiled = line + 6;
    } else if (sscanf(line, "version %u %u", &major_version, &minor_version) == 2) {
      free(line);
    } else if (!strncmp(line, "close", 5)) {
      dlclose(library);
      library = NULL;
      puts("closed");
    } else {
      Task tasks[MODELS] = {{line, NULL}};
      char verbs[MODELS] = {line[0]};
      pthread_t threads[MODELS];
      for (int i = 1; i < count; i++) {
        tasks[i].line = next();
        verbs[i] = tasks[i].line[0];
      }
      for (int i = 0; i < count; i++) pthread_create(&threads[i], NULL, run, &tasks[i]);
      for (int i = 0; i < count; i++) pthread_join(threads[i], NULL);
      for (int i = 0; i < count; i++) answer(&tasks[i], &verbs[i]);
      count = 1;
    }
  }
  printf("errors %d\n", errors);
  return 0;
}

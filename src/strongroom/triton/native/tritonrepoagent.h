/* What the repository agent uses of Triton's interface for agents, version 0.1 (TRITONREPOAGENT_ApiVersion).
 *
 * Declared here, since Triton's own header is C++, and since no machine that builds the agent needs Triton then.
 * The symbols are those of the server that loads the agent.
 */
#ifndef STRONGROOM_TRITONREPOAGENT_H
#define STRONGROOM_TRITONREPOAGENT_H

#include <stdint.h>

typedef struct TRITONSERVER_Error TRITONSERVER_Error;
typedef struct TRITONREPOAGENT_Agent TRITONREPOAGENT_Agent;
typedef struct TRITONREPOAGENT_AgentModel TRITONREPOAGENT_AgentModel;

/* Enumerations of C have the size of int here, as those of Triton do. */
typedef int TRITONSERVER_Error_Code;
enum {
  TRITONSERVER_ERROR_INTERNAL = 1,
  TRITONSERVER_ERROR_UNSUPPORTED = 5,
};


typedef int TRITONREPOAGENT_ArtifactType;
enum { TRITONREPOAGENT_ARTIFACT_FILESYSTEM = 0 };

typedef int TRITONREPOAGENT_ActionType;
enum {
  TRITONREPOAGENT_ACTION_LOAD = 0,
  TRITONREPOAGENT_ACTION_LOAD_COMPLETE = 1,
  TRITONREPOAGENT_ACTION_LOAD_FAIL = 2,
  TRITONREPOAGENT_ACTION_UNLOAD = 3,
  TRITONREPOAGENT_ACTION_UNLOAD_COMPLETE = 4,
};

/* Of the server. */
TRITONSERVER_Error *TRITONSERVER_ErrorNew(TRITONSERVER_Error_Code code, const char *message);
TRITONSERVER_Error *TRITONREPOAGENT_ApiVersion(uint32_t *major, uint32_t *minor);
TRITONSERVER_Error *TRITONREPOAGENT_ModelRepositoryLocation(
    TRITONREPOAGENT_Agent *agent, TRITONREPOAGENT_AgentModel *model,
    TRITONREPOAGENT_ArtifactType *type, const char **location);
TRITONSERVER_Error *TRITONREPOAGENT_ModelRepositoryUpdate(
    TRITONREPOAGENT_Agent *agent, TRITONREPOAGENT_AgentModel *model,
    TRITONREPOAGENT_ArtifactType type, const char *location);
TRITONSERVER_Error *TRITONREPOAGENT_ModelParameterCount(
    TRITONREPOAGENT_Agent *agent, TRITONREPOAGENT_AgentModel *model, uint32_t *count);
TRITONSERVER_Error *TRITONREPOAGENT_ModelParameter(
    TRITONREPOAGENT_Agent *agent, TRITONREPOAGENT_AgentModel *model, uint32_t index,
    const char **name, const char **value);

/* Of the agent. */
#define TRITONREPOAGENT_EXPORT __attribute__((visibility("default")))
TRITONREPOAGENT_EXPORT TRITONSERVER_Error *TRITONREPOAGENT_Initialize(TRITONREPOAGENT_Agent *agent);
TRITONREPOAGENT_EXPORT TRITONSERVER_Error *TRITONREPOAGENT_ModelFinalize(
    TRITONREPOAGENT_Agent *agent, TRITONREPOAGENT_AgentModel *model);
TRITONREPOAGENT_EXPORT TRITONSERVER_Error *TRITONREPOAGENT_ModelAction(
    TRITONREPOAGENT_Agent *agent, TRITONREPOAGENT_AgentModel *model,
    TRITONREPOAGENT_ActionType action);

#endif

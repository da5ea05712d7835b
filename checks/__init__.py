"""The checks. `CHECKLIST` is the whole list, in the order in which it is shown; nothing registers itself."""

from checks import config, data, env, grad, loader, memory, step, storage, tracking, tree

CHECKLIST = (
    *env.CHECKS,
    *config.CHECKS,
    *data.CHECKS,
    *grad.CHECKS,
    *step.CHECKS,
    *tree.CHECKS,
    *memory.CHECKS,
    *loader.CHECKS,
    *storage.CHECKS,
    *tracking.CHECKS,
)

/** Which routine a call of a helper becomes, for helpers that are not inlined; those of maps are in `map-routines.ts`. */
import {
  findHelperName,
  HELPER_GET_CURRENT_COMM,
  HELPER_GET_CURRENT_PID_TGID,
  HELPER_GET_CURRENT_UID_GID,
  HELPER_GET_FUNC_ARG,
  HELPER_GET_FUNC_ARG_CNT,
  HELPER_GET_FUNC_RET,
  HELPER_GET_NUMA_NODE_ID,
  HELPER_GET_PRANDOM_U32,
  HELPER_GET_STACK,
  HELPER_GET_STACKID,
  HELPER_JIFFIES64,
  HELPER_KTIME_GET_BOOT_NS,
  HELPER_KTIME_GET_COARSE_NS,
  HELPER_KTIME_GET_NS,
  HELPER_KTIME_GET_TAI_NS,
  HELPER_OVERRIDE_RETURN,
  HELPER_PROBE_READ,
  HELPER_PROBE_READ_KERNEL,
  HELPER_PROBE_READ_KERNEL_STR,
  HELPER_PROBE_READ_STR,
  HELPER_PROBE_READ_USER,
  HELPER_PROBE_READ_USER_STR,
  HELPER_SNPRINTF,
  HELPER_STRNCMP,
  HELPER_STRTOL,
  HELPER_STRTOUL,
  HELPER_TRACE_PRINTK,
  HELPER_TRACE_VPRINTK,
} from "../../helpers.ts";
import { JitError } from "../jit-error.ts";
import { clockNs, jiffies, numaNodeId } from "./clock-routines.ts";
import { funcArg, funcArgCount, funcRet } from "./function-routines.ts";
import type { HelperCall, RoutineContext } from "./helper-call.ts";
import { mapRoutineFor, stackTraceInput } from "./map-routines.ts";
import { overrideReturn } from "./override-routines.ts";
import { tracePrintk, traceVprintk } from "./printk-routines.ts";
import type { Routine } from "./routine.ts";
import { snprintf } from "./snprintf-routines.ts";
import { stackInsert } from "./stack-trace-routines.ts";
import { getStack, getStackId } from "./stack-walk-routines.ts";
import { currentComm, pidTgid, prandomU32, uidGid } from "./task-routines.ts";
import { stringToNumber, strncmp } from "./text-routines.ts";
import { probeReadUser, probeReadUserStr } from "./user-read-routines.ts";

export type { HelperCall, RoutineContext };

/** Throws JitError if there is none. */
export function routineFor(context: RoutineContext, call: HelperCall): Routine {
  const { routines, env } = context;
  switch (call.helper) {
    case HELPER_KTIME_GET_NS:
      return clockNs(routines, env, "monotonic");
    case HELPER_KTIME_GET_BOOT_NS:
      return clockNs(routines, env, "boot");
    case HELPER_KTIME_GET_COARSE_NS:
      return clockNs(routines, env, "coarse");
    case HELPER_KTIME_GET_TAI_NS:
      return clockNs(routines, env, "tai");
    case HELPER_JIFFIES64:
      return jiffies(routines, env);
    case HELPER_GET_NUMA_NODE_ID:
      return numaNodeId(routines, env);
    case HELPER_GET_PRANDOM_U32:
      return prandomU32(routines);
    case HELPER_GET_CURRENT_PID_TGID:
      return pidTgid(routines, env);
    case HELPER_GET_CURRENT_UID_GID:
      return uidGid(routines);
    case HELPER_GET_CURRENT_COMM:
      return currentComm(routines);
    // There is one address space: what is the kernel's cannot be read.
    case HELPER_PROBE_READ:
    case HELPER_PROBE_READ_USER:
    case HELPER_PROBE_READ_KERNEL:
      return probeReadUser(routines, env);
    case HELPER_PROBE_READ_STR:
    case HELPER_PROBE_READ_USER_STR:
    case HELPER_PROBE_READ_KERNEL_STR:
      return probeReadUserStr(routines, env);
    case HELPER_STRNCMP:
      return strncmp(routines, textOf(call));
    case HELPER_SNPRINTF:
      return snprintf(routines, env, textOf(call));
    case HELPER_TRACE_PRINTK:
      return tracePrintk(context);
    case HELPER_TRACE_VPRINTK:
      return traceVprintk(context);
    case HELPER_STRTOL:
      return stringToNumber(routines, true);
    case HELPER_STRTOUL:
      return stringToNumber(routines, false);
    case HELPER_GET_STACK:
      return getStack(routines, env);
    case HELPER_GET_STACKID: {
      const input = stackTraceInput(context, call);
      if (input === undefined) return noRoutine(context, call);
      const map = { name: input.name, valueBytes: input.spec.valueBytes, insert: stackInsert(input) };
      return getStackId(routines, env, map);
    }
    case HELPER_OVERRIDE_RETURN:
      return overrideReturn(routines);
    case HELPER_GET_FUNC_ARG:
      return funcArg(routines);
    case HELPER_GET_FUNC_RET:
      return funcRet(routines);
    case HELPER_GET_FUNC_ARG_CNT:
      return funcArgCount(routines);
    default:
      return mapRoutineFor(context, call) ?? noRoutine(context, call);
  }
}

function noRoutine({ bundle }: RoutineContext, { helper, mapIndex }: HelperCall): never {
  const map = mapIndex === undefined ? undefined : bundle.maps[mapIndex];
  const on = map === undefined ? "" : ` on map ${map.name} of kind ${map.kind}`;
  throw new JitError(`compile call of ${findHelperName(helper) ?? `helper ${helper}`}${on}: no routine`);
}

function textOf(call: HelperCall): Uint8Array {
  if (call.text === undefined)
    throw new JitError(`compile call of ${findHelperName(call.helper)}: its text is not known`);
  return call.text;
}

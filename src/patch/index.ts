export { encodeJump } from "../x86/punning.ts";
export {
  Blacklist,
  type BlacklistEntry,
  blacklistText,
  findBlacklistedImage,
  findBlacklistedMapping,
} from "./blacklist.ts";
export {
  type Detour,
  type DetourResult,
  type DetourSpec,
  emitDetour,
  type ReturnHook,
  stackNeed,
} from "./detour.ts";
export { type CodeLine, codeLines, explainSite, hexBytes, printCodeLines, routeLines } from "./explain.ts";
export {
  type CodeRange,
  emitFaultHandler,
  encodeRanges,
  FAULT_SIGNALS,
  type FaultHandler,
  type FaultHandlerSpec,
  RANGE_BYTES,
} from "./fault-handler.ts";
export {
  emitApproach,
  emitFunctionTrampoline,
  entryDistanceOf,
  type FunctionTrampoline,
  type FunctionTrampolineSpec,
  mayServe,
  trampolineKey,
} from "./function-trampoline.ts";
export { encodeLanding, LANDING_BYTES, LandingPlaces } from "./landing-places.ts";
export {
  doesReturnTwice,
  findOverrideRefusal,
  findReturnRefusal,
  type Mechanism,
  mechanisms,
  type OtherTracers,
  type PlannedSite,
  type PlanOptions,
  patchOf,
  planAsTrap,
  planSites,
  type RefusedRung,
  type RefusedSite,
  type SiteFunction,
  type SitePlan,
} from "./plan.ts";
export {
  type ExitsRefusal,
  type OverrideRefusal,
  type Refusal,
  type ReturnRefusal,
  refusalText,
} from "./refusal.ts";
export {
  emitReturnTrampoline,
  type ReturnTrampoline,
  type ReturnTrampolineSpec,
} from "./return-probe.ts";
export {
  emitReturnRuntime,
  RETURN_ADDRESS_OFFSET,
  RETURN_ENTRY_BYTES,
  RETURN_KEY_OFFSET,
  type ReturnEntry,
  type ReturnRuntime,
  type ReturnTableSpec,
  readReturnTable,
  returnsToRestore,
  returnTableBytes,
  returnTableEntries,
} from "./return-table.ts";
export {
  evictedBy,
  landingsOf,
  type PunRoute,
  patchRoute,
  type Route,
  type RoutePatch,
  type SidePatch,
} from "./route.ts";
export {
  decodeSignalAction,
  encodeSignalAction,
  SIGNAL_ACTION_BYTES,
  type SignalAction,
} from "./signal-action.ts";
export { emitTrapHandler, SIGTRAP, type TrapHandler, type TrapHandlerSpec } from "./trap-handler.ts";
export { type TableWrite, TrapTable } from "./trap-table.ts";

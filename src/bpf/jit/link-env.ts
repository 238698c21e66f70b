/** What generated code needs to know about the process that it will run in; decided when a target is attached. */
export interface LinkEnv {
  /** Address of the storage of a map of the bundle in the target; a multiple of 64. */
  mapAddr(mapIndex: number): bigint;
  /** Where the processor number comes from: TSC_AUX, or the limit of the segment that Linux keeps it in. */
  readonly cpu: "rdpid" | "lsl";
  /** The vDSO's clock_gettime; undefined: the system call. It is called with an aligned stack. */
  readonly clockGettime: bigint | undefined;
  /** The thread id is the u32 at this offset from fs; undefined: as the third word of the pid cache says. */
  readonly tidOffset: number | undefined;
  /**
   * Address of two u32 that a fork wipes: the process id as it is shown to the user, and as the target's own
   * namespace has it. 0 is unknown: the code asks the kernel and stores it. A third u32 is the offset of the thread id
   * from fs as far as it was found later, and 0 until then: the code makes a system call. It may only be set
   * where rdfsbase is allowed. At RETURN_LOOKUP_OFFSET follow three u64, 0 while no returns are probed: how walks of
   * the stack find the return addresses that probes have replaced (`returnLookupWrites`).
   */
  readonly pidCache: bigint;
  /** Where it is counted what becomes of the hits of the one probe that the programs are compiled for; undefined: nowhere. */
  readonly account?: ProgramAccount | undefined;
}

export interface ProgramAccount {
  /** Address of the account (bpf/accounts.ts). */
  readonly at: bigint;
  /** The program itself says which hits have passed: programs of scripts have predicates. */
  readonly isKeptByProgram: boolean;
}

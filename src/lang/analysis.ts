/**
 * What the analysis of a script finds out, and the state in which it looks at one probe after the other.
 *
 * A map may be read in an earlier probe than the one that writes it, so types are inferred in rounds over the
 * whole script until nothing changes; only the last round reports.
 */
import type { CallExpr, Expr, ProbeNode } from "./ast.ts";
import type { DiagnosticList } from "./diagnostics.ts";
import type { FormatPart } from "./format.ts";
import type { Message } from "./messages.ts";
import type { Span } from "./source.ts";
import { printType, type Type, unifyTypes, unknownType } from "./types.ts";

/** What the script depends on besides its text. */
export interface AnalysisOptions {
  /** The values of `$1`, `$2`, .... */
  readonly params: readonly string[];
  /** Most bytes of a string, with its end mark. */
  readonly strLen: number;
}

export interface MapTypes {
  readonly name: string;
  /** Undefined until the map is used with or without keys; then one per key. */
  keys: readonly Type[] | undefined;
  value: Type;
}

/** One probe as the analysis sees it. */
export interface ProbeScope {
  readonly node: ProbeNode;
  readonly variables: Map<string, Type>;
}

export class Analysis {
  readonly options: AnalysisOptions;
  /** The type of each expression, from the last round. */
  readonly types = new Map<Expr, Type>();
  readonly maps = new Map<string, MapTypes>();
  readonly scopes = new Map<ProbeNode, ProbeScope>();
  /** Parsed formats of printf calls. */
  readonly formats = new Map<CallExpr, readonly FormatPart[]>();
  /** Set whenever a round learns something about a map or a variable. */
  changed = false;
  /** Undefined in the rounds that only infer. */
  diagnostics: DiagnosticList | undefined;

  constructor(options: AnalysisOptions) {
    this.options = options;
  }

  typeOf(expr: Expr): Type {
    return this.types.get(expr) ?? unknownType;
  }

  error(span: Span, message: Message): void {
    this.diagnostics?.error(span, message);
  }

  warning(span: Span, message: Message): void {
    this.diagnostics?.warning(span, message);
  }

  mapOf(name: string): MapTypes {
    let map = this.maps.get(name);
    if (!map) {
      map = { name, keys: undefined, value: unknownType };
      this.maps.set(name, map);
    }
    return map;
  }

  /** Widens a map's value type; false if `type` does not fit what the map holds. */
  widenMap(map: MapTypes, type: Type): boolean {
    const unified = unifyTypes(map.value, type);
    if (unified === undefined) return false;
    if (printDetail(unified) !== printDetail(map.value)) {
      map.value = unified;
      this.changed = true;
    }
    return true;
  }

  /** Widens a map's key types; false if they do not fit. */
  widenKeys(map: MapTypes, keys: readonly Type[]): boolean {
    if (map.keys === undefined) {
      map.keys = keys;
      this.changed = true;
      return true;
    }
    if (map.keys.length !== keys.length) return false;
    const unified: Type[] = [];
    for (const [i, key] of keys.entries()) {
      const type = unifyTypes(map.keys[i]!, key);
      if (type === undefined) return false;
      unified.push(type);
    }
    if (unified.map(printDetail).join() !== map.keys.map(printDetail).join()) {
      map.keys = unified;
      this.changed = true;
    }
    return true;
  }

  /** Widens a variable; false if `type` does not fit. */
  widenVariable(scope: ProbeScope, name: string, type: Type): boolean {
    const had = scope.variables.get(name) ?? unknownType;
    const unified = unifyTypes(had, type);
    if (unified === undefined) return false;
    if (!scope.variables.has(name) || printDetail(unified) !== printDetail(had)) {
      scope.variables.set(name, unified);
      this.changed = true;
    }
    return true;
  }
}

function printDetail(type: Type): string {
  return type.kind === "unknown" ? "?" : printType(type);
}

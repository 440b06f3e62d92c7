// How charts are looked at: a part of the page's URL.
import { setQuery, useQuery } from "../router";
import { AXES, type Axis, type Range } from "./series";

export const SMOOTH = 0.6;

/** `smooth` is 0 to 0.99; `all` shows spikes whole; `range` is what is seen of x, null for all; `finding` is the code of the chosen one. */
export function useView() {
  const [x, smooth, from, to] = [useQuery("x"), Number(useQuery("smooth") ?? SMOOTH), useQuery("from"), useQuery("to")];
  const zoomed = from !== null && to !== null && Number(from) < Number(to);
  return {
    axis: x !== null && x in AXES ? (x as Axis) : "step",
    log: useQuery("log") === "1",
    smooth: smooth >= 0 && smooth <= 0.99 ? smooth : SMOOTH,
    all: useQuery("all") === "1",
    range: zoomed ? ([Number(from), Number(to)] as Range) : null,
    finding: useQuery("finding"),
  };
}
export type View = ReturnType<typeof useView>;

export function setRange(range: Range | null, push = false): void {
  const [from, to] = range?.map((value) => Number(value.toPrecision(9))) ?? [null, null];
  setQuery({ from, to }, { push });
}

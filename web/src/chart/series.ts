// Points made into what a chart draws: columns over an x axis, smoothed lines, a range that spikes do not stretch. Knows no canvas.
import type { Metric, MetricData } from "../api/client";
import { compact, number } from "../ui/format";

export type Column = (number | null)[];
export type Range = [from: number, to: number];
export type Axis = "step" | "epoch" | "tokens" | "time";

/** Seconds in one unit: 40 s, 2.5 min, 3 h. */
const clock = (seconds: number): string => (seconds < 60 ? `${number(seconds)} s` : seconds < 3600 ? `${number(seconds / 60)} min` : `${number(seconds / 3600)} h`);

type Of = (point: Metric, first: Metric) => number;
export const AXES: Record<Axis, { label: string; of: Of; format: (value: number) => string }> = {
  step: { label: "Step", of: (point) => point.data.step, format: number },
  epoch: { label: "Epoch", of: (point) => point.data.epoch, format: number },
  tokens: { label: "Tokens", of: (point) => point.data.tokens_seen ?? 0, format: compact },
  time: { label: "Time", of: (point, first) => (point.created_at ?? 0) - (first.created_at ?? 0), format: clock },
};

/** The places of points on an axis; they never go back. */
export function places(points: readonly Metric[], axis: Axis): number[] {
  let last = -Infinity;
  return points.map((point) => (last = Math.max(last, AXES[axis].of(point, points[0]!))));
}

export const column = (points: readonly Metric[], name: keyof MetricData): Column => points.map((point) => point.data[name] ?? null);

/**
 * Means around each value in which one `unit` of steps away weighs `strength` of the middle one: looking both ways, so that nothing seems
 * to come later than it does. `unit` is a thousandth of the run or the distance of two values, whichever is more, so that a thinned curve
 * looks as the whole one does. Thinning keeps extremes, which would weigh too much: there each value is first the median of five.
 */
export function smooth(values: Column, points: readonly Metric[], strength: number): Column {
  const known = values.flatMap((value, index) => (value === null ? [] : [{ value, index, step: points[index]!.data.step, sum: 0, weight: -1 }]));
  const [first, last] = [points[0]?.data, points.at(-1)?.data];
  const raw = known.map(({ value }) => value);
  const thinned = last && points.length < last.step - first!.step;
  known.forEach((one, index) => {
    const near = raw.slice(Math.max(0, index - 2), index + 3);
    if (thinned) one.value = near.sort((a, b) => a - b)[near.length >> 1]!;
    one.sum = -one.value;
  });
  const unit = Math.max((last?.total_steps ?? 0) / 1000, (known.at(-1)?.step ?? 0) / Math.max(1, known.length), 1e-9);
  for (const way of [known, known.toReversed()]) {
    let [sum, weight, before] = [0, 0, 0];
    for (const one of way) {
      const kept = strength ** (Math.abs(one.step - before) / unit);
      [sum, weight, before] = [sum * kept + one.value, weight * kept + 1, one.step];
      one.sum += sum;
      one.weight += weight;
    }
  }
  const smoothed: Column = values.slice();
  for (const { index, sum, weight } of known) smoothed[index] = sum / weight;
  return smoothed;
}

/** The index of the first of ascending `values` that is not below `value`. */
export function at(values: ArrayLike<number>, value: number): number {
  let [low, high] = [0, values.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle]! < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** The newest value at an index or before it. */
export function upTo(values: Column, index: number): number | null {
  while (index >= 0 && values[index] == null) index--;
  return values[index] ?? null;
}

/** Least and greatest of what is seen, and of `level`. Of `noisy` columns the outermost hundredth is left out. */
export function extent(calm: Column[], noisy: Column[], from: number, to: number, level: number | undefined): Range {
  let [low, high] = [level ?? Infinity, level ?? -Infinity];
  const take = (values: Float64Array) => {
    for (const value of values) [low, high] = [Math.min(low, value), Math.max(high, value)];
  };
  const seen = (values: Column) => Float64Array.from(values.slice(from, to).filter((value) => value !== null));
  for (const values of calm) take(seen(values));
  for (const values of noisy) {
    const sorted = seen(values).sort();
    const cut = Math.floor(sorted.length / 200);
    take(sorted.subarray(cut, sorted.length - cut));
  }
  return low <= high ? [low, high] : [0, 1];
}

/** Several tables joined on x: the places of all, and each table's columns with gaps where it has no row. */
export function join(tables: { xs: readonly number[]; columns: Column[] }[]): { xs: number[]; columns: Column[][] } {
  const xs = [...new Set(tables.flatMap((table) => table.xs))].sort((a, b) => a - b);
  const row = new Map(xs.map((x, index) => [x, index]));
  const wide = (table: { xs: readonly number[] }, values: Column) => {
    const all: Column = Array(xs.length).fill(null);
    values.forEach((value, index) => value !== null && (all[row.get(table.xs[index]!)!] = value));
    return all;
  };
  return { xs, columns: tables.map((table) => table.columns.map((values) => wide(table, values))) };
}

/** Hand the reader a file. */
export function save(content: Blob | string, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content]));
  link.download = name.replaceAll(/[^\w.-]+/g, "-");
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

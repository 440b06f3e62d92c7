// One plot on uPlot: made once, then given new data. What it draws is the drawing's, how it is looked at the view's.
import { useSignalEffect, type Signal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import { setQuery } from "../router";
import { Clip, theme } from "../ui";
import { loss, percent, rate } from "../ui/format";
import { drawOver, drawUnder, FONT, ink, NAMES } from "./marks";
import { at, AXES, extent, upTo, type Axis, type Column, type Range } from "./series";
import { setRange, type View } from "./view";

/** Raw values lie faint under the smoothed ones; dots are joined by a thin line. Each if it is there. */
export interface Line {
  label: string;
  color: string;
  raw?: Column;
  values?: Column;
  dots?: Column;
}
/** `about` says in words what it shows; values are shares from 0 to 1 or else losses; the level is a dashed line. */
export interface Panel {
  title: string;
  about: string;
  share: boolean;
  lines: Line[];
  level?: { label: string; value: number } | undefined;
}
/** Panels over one x axis, and what stands on all of them: where epochs end, checkpoints, findings. */
export interface Drawing {
  axis: Axis;
  xs: number[];
  panels: Panel[];
  borders?: { x: number; epoch: number }[];
  marks?: { x: number; label: string; color: string; dash: number[] }[];
  bands?: { code: string; from: number; to: number; color: string }[];
}
interface PlotProps {
  drawing: Drawing;
  panel: Panel;
  view: View;
  /** Index of the row under the cursor, the same for all plots of a drawing. */
  cursor: Signal<number | null>;
  onPlot: (plot: uPlot | null) => void;
}
type Latest = { current: PlotProps };

/** A line without any value yet has its place in the plot, so that this need not be made anew when the first comes; it is not named. */
export const isThere = ({ values, dots }: Line): boolean => [values, dots].some((column) => column?.some((value) => value !== null));

const SECONDS = [1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14_400, 43_200, 86_400, 172_800, 604_800];
const MOST_ZOOM = 20_000;

const whole = ({ xs }: Drawing): Range => [xs[0] ?? 0, Math.max(xs.at(-1) ?? 1, (xs[0] ?? 0) + 1e-9)];

/** A range scaled about `centre` (0 to 1) and moved by a share of itself, kept within the drawing; null is all of it. */
export function zoomed(drawing: Drawing, range: Range | null, { by = 1, move = 0, centre = 0.5 }): Range | null {
  const [least, most] = whole(drawing);
  const [from, to] = range ?? [least, most];
  const width = Math.max((to - from) * by, (most - least) / MOST_ZOOM);
  if (by > 1 && width >= (most - least) * 0.999) return null;
  const start = Math.max(least, Math.min(from + (to - from) * (centre * (1 - by) + move), most - width));
  return [start, start + width];
}

export function Plot(props: PlotProps) {
  const { drawing, panel, view, cursor } = props;
  const host = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const latest = useRef(props);
  latest.current = props;
  const log = view.log && !panel.share;
  const shape = panel.lines.map(({ label, color, raw, values, dots }) => [label, color, !!raw, !!values, !!dots]).join();
  useEffect(() => {
    const place = host.current!;
    const size = () => ({ width: place.clientWidth, height: place.clientHeight });
    const made = (plot.current = new uPlot({ ...options(latest, log), ...size() }, table(latest.current), place));
    props.onPlot(made);
    const resized = new ResizeObserver(() => made.setSize(size()));
    resized.observe(place);
    return () => {
      resized.disconnect();
      made.destroy();
      props.onPlot(null);
    };
  }, [shape, drawing.axis, log]);
  useEffect(() => plot.current!.setData(table(latest.current)), [drawing, view.range?.[0], view.range?.[1], view.all, view.finding]);
  useSignalEffect(() => {
    theme.value;
    plot.current?.redraw(false);
  });
  return (
    <figure class="plot">
      <figcaption>
        <h2>{panel.title}</h2>
        <Legend panel={panel} index={cursor.value ?? drawing.xs.length - 1} />
      </figcaption>
      <div ref={host} class={panel.share ? "canvas low" : "canvas"} role="img" aria-label={panel.about} />
    </figure>
  );
}

/** Values at the cursor, else the newest. A line's own value stands in brackets behind the smoothed. */
function Legend({ panel: { lines, level, share }, index }: { panel: Panel; index: number }) {
  const format = (values: Column) => (share ? percent : loss)(upTo(values, index));
  return (
    <ul class="legend">
      {lines.filter(isThere).map(({ label, color, raw, values, dots }) => (
        <li key={label} style={{ "--color": `var(${color})` }}>
          <i class={values ? "" : "dot"} />
          <Clip class="muted" text={label} />
          {values && <b>{format(values)}</b>}
          {raw && !dots && <span class="raw muted nowrap">({format(raw)})</span>}
          {values && dots && <i class="dot" />}
          {dots && <b>{format(dots)}</b>}
        </li>
      ))}
      {level && <li style={{ "--color": "var(--base)" }}><i class="dashed" /><span class="muted">{level.label}</span><b>{(share ? percent : loss)(level.value)}</b></li>}
    </ul>
  );
}

const columns = (lines: readonly Line[], ...names: ("raw" | "values" | "dots")[]): Column[] => lines.flatMap((line) => names.flatMap((name) => (line[name] ? [line[name]] : [])));
const table = ({ drawing, panel }: PlotProps) => [drawing.xs, ...columns(panel.lines, "raw", "values", "dots")] as uPlot.AlignedData;

function series({ color, raw, values, dots }: Line): uPlot.Series[] {
  const stroke = () => ink(color);
  const plain = { stroke, width: 1, spanGaps: true, points: { show: false } };
  return [...(raw ? [{ ...plain, alpha: 0.28 }] : []), ...(values ? [{ ...plain, width: 1.75 }] : []), ...(dots ? [{ ...plain, points: { show: true, size: 6, width: 0, fill: stroke } }] : [])];
}

/** The range of y: all that is seen of the lines, and the level until one zooms, with some room. */
function fit({ drawing, panel: { lines, level, share }, view }: PlotProps, log: boolean): Range {
  const [from, to] = view.range ?? whole(drawing);
  const calm = columns(lines, "values", "dots", ...(view.all ? ["raw" as const] : []));
  const [low, high] = extent(calm, view.all ? [] : columns(lines, "raw"), Math.max(0, at(drawing.xs, from) - 1), at(drawing.xs, to) + 1, view.range ? undefined : level?.value);
  if (log) return [Math.max(low, high / 1e6, 1e-9) / 1.1, Math.max(high, 1e-9) * 1.1];
  const room = Math.max((high - low) * 0.06, Math.abs(high) * 1e-4, 1e-9);
  return share ? [Math.max(-0.005, low - room), Math.min(1.005, high + room)] : [low >= 0 ? Math.max(0, low - room) : low - room, high + room];
}

/** Values evenly apart on a log scale, to one digit or, where they are near each other, two. */
function logSplits(u: uPlot, _: number, min: number, max: number): number[] {
  const count = Math.max(2, Math.floor(u.height / 50));
  const digits = (max / min) ** (1 / count) > 1.6 ? 1 : (max / min) ** (1 / count) > 1.03 ? 2 : 4;
  return [...new Set(Array.from({ length: count + 1 }, (_, index) => Number((min * (max / min) ** (index / count)).toPrecision(digits))))].filter((value) => value >= min && value <= max);
}

function words(splits: number[], share: boolean): string[] {
  const scale = share ? 100 : 1;
  const step = Number((scale * ((splits[1] ?? 1) - (splits[0] ?? 0))).toPrecision(3));
  const digits = String(step).split(".")[1]?.length ?? 0;
  return splits.map((value) => (step < 1e-4 ? value.toExponential(2) : `${(scale * value).toFixed(digits)}${share ? " %" : ""}`));
}

function options(latest: Latest, log: boolean): Omit<uPlot.Options, "width" | "height"> {
  const { panel, drawing } = latest.current;
  const line = { stroke: () => ink("--line"), width: 1 };
  const axis: uPlot.Axis = { stroke: () => ink("--muted"), font: FONT, grid: line, ticks: { ...line, size: 4 }, gap: 4, filter: (_, splits) => splits };
  return {
    padding: [20, 26, 0, 0],
    legend: { show: false },
    series: [{}, ...panel.lines.flatMap(series)],
    scales: {
      x: { time: false, range: () => latest.current.view.range ?? whole(latest.current.drawing) },
      y: { distr: log ? 3 : 1, range: () => fit(latest.current, log) },
    },
    axes: [
      { ...axis, size: 28 + (panel.share || !drawing.borders ? 0 : NAMES), space: 80, values: (_, splits) => splits.map(AXES[drawing.axis].format), ...(drawing.axis === "time" && { incrs: SECONDS }) },
      { ...axis, size: 52, space: 36, values: (_, splits) => (log ? splits.map(rate) : words(splits, panel.share)), ...(log && { splits: logSplits }) },
    ],
    cursor: {
      y: false,
      drag: { x: true, y: false, setScale: false, dist: 5 },
      points: { size: 7 },
      // Plots share where the cursor is, not what is dragged.
      sync: { key: "charts", setSeries: false, scales: ["x", null], filters: { pub: (type) => type === "mousemove" || type === "mouseleave" } },
      bind: { dblclick: () => (() => setRange(null, true)) as unknown as uPlot.Cursor.MouseListener },
    },
    hooks: {
      ready: [(u) => listen(u, latest)],
      drawClear: [(u) => drawUnder(u, latest.current.drawing, latest.current.panel, latest.current.view.finding)],
      draw: [(u) => drawOver(u, latest.current.drawing, latest.current.panel)],
      setCursor: [(u) => void (latest.current.cursor.value = u.cursor.idx ?? null)],
      setSelect: [
        (u) => {
          const { left, width } = u.select;
          if (!width) return;
          u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
          setRange([u.posToVal(left, "x"), u.posToVal(left + width, "x")], true);
        },
      ],
    },
  };
}

/** A click chooses the finding of the narrowest band; the wheel zooms with Ctrl (as a pinch does) and moves sideways. */
function listen(u: uPlot, latest: Latest): void {
  const under = (event: MouseEvent) => {
    const x = u.posToVal(event.offsetX, "x");
    const found = latest.current.drawing.bands?.filter(({ from, to }) => from <= x && x <= to) ?? [];
    return found.toSorted((a, b) => a.to - a.from - (b.to - b.from))[0]?.code;
  };
  u.over.addEventListener("mousemove", (event) => (u.over.style.cursor = under(event) ? "pointer" : "crosshair"));
  u.over.addEventListener("click", (event) => {
    const code = under(event);
    if (code) setQuery({ finding: code === latest.current.view.finding ? null : code });
  });
  const wheel = (event: WheelEvent) => {
    const { drawing, view } = latest.current;
    const zooms = event.ctrlKey || event.metaKey;
    if (!zooms && (!view.range || Math.abs(event.deltaX) <= Math.abs(event.deltaY))) return;
    event.preventDefault();
    const width = u.over.clientWidth;
    setRange(zoomed(drawing, view.range, zooms ? { by: Math.exp(Math.max(-50, Math.min(50, event.deltaY)) / 120), centre: event.offsetX / width } : { move: event.deltaX / width }));
  };
  u.over.addEventListener("wheel", wheel, { passive: false });
}

// Plots one above the other with one cursor, and the controls over them. What they draw is data (Drawing); how it is looked at is the URL.
import { useSignal } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { useRef } from "preact/hooks";
import type uPlot from "uplot";
import { setQuery } from "../router";
import { Button, Check, Segments } from "../ui";
import "./chart.css";
import { ink } from "./marks";
import { isThere, Plot, zoomed, type Drawing } from "./plot";
import { AXES, save, type Axis } from "./series";
import { setRange, SMOOTH, useView } from "./view";

const ZOOMS = [
  { label: "Zoom in", sign: "+", change: { by: 0.5 } },
  { label: "Zoom out", sign: "−", change: { by: 2 } },
  { label: "Earlier", sign: "‹", change: { move: -0.5 } },
  { label: "Later", sign: "›", change: { move: 0.5 } },
];

/** `name` is the picture's; `where` says in words where the row with an index stands. */
export function Charts({ drawing, name, where, actions }: { drawing: Drawing; name: string; where: (index: number) => string; actions?: ComponentChildren }) {
  const view = useView();
  const cursor = useSignal<number | null>(null);
  const plots = useRef<(uPlot | null)[]>([]);
  const axis = (x: Axis) => setQuery({ x: x === "step" ? null : x, from: null, to: null });
  const flag = (name: string) => (on: boolean) => setQuery({ [name]: on ? 1 : null });
  const smooth = (strength: number) => setQuery({ smooth: strength === SMOOTH ? null : strength });
  return (
    <div class="charts">
      <div class="chart-tools">
        <Segments label="X axis" value={view.axis} onChange={axis} options={Object.entries(AXES).map(([value, { label }]) => ({ value: value as Axis, label }))} />
        <label class="row">
          Smoothing
          <input type="range" min={0} max={0.99} step={0.01} value={view.smooth} onInput={(event) => smooth(event.currentTarget.valueAsNumber)} />
          <output class="muted">{view.smooth.toFixed(2)}</output>
        </label>
        <Check label="Log scale" checked={view.log} onChange={flag("log")} />
        <Check label="All values" checked={view.all} onChange={flag("all")} />
        <div class="row zoom" role="group" aria-label="Zoom and download">
          {ZOOMS.map(({ label, sign, change }) => (
            <Button key={sign} small aria-label={label} title={label} disabled={sign !== "+" && !view.range} onClick={() => setRange(zoomed(drawing, view.range, change))}>{sign}</Button>
          ))}
          <Button small disabled={!view.range} onClick={() => setRange(null, true)}>Reset</Button>
          <Button small onClick={() => png(plots.current, drawing, name)}>PNG</Button>
          {actions}
        </div>
      </div>
      <p class="where clip muted small">{drawing.xs.length > 0 && where(Math.min(cursor.value ?? Infinity, drawing.xs.length - 1))}</p>
      {drawing.panels.map((panel, index) => <Plot key={panel.title} {...{ drawing, panel, view, cursor }} onPlot={(plot) => (plots.current[index] = plot)} />)}
    </div>
  );
}

/** All plots with their titles and legends as one picture. */
function png(plots: readonly (uPlot | null)[], drawing: Drawing, name: string): void {
  const canvases = plots.flatMap((plot) => plot?.ctx.canvas ?? []);
  const paper = document.createElement("canvas");
  const ctx = paper.getContext("2d")!;
  const scale = (canvases[0]?.width ?? 1) / (plots[0]?.width ?? 1);
  paper.width = canvases[0]?.width ?? 0;
  paper.height = canvases.reduce((sum, canvas) => sum + canvas.height + 24 * scale, 40 * scale);
  ctx.fillStyle = ink("--bg");
  ctx.fillRect(0, 0, paper.width, paper.height);
  let [x, y] = [0, 22 * scale];
  const write = (text: string, token: string, weight = 400) => {
    [ctx.font, ctx.fillStyle] = [`${weight} ${12 * scale}px system-ui, sans-serif`, ink(token)];
    ctx.fillText(text, (x += 14 * scale), y);
    x += ctx.measureText(text).width;
  };
  write(name, "--text", 650);
  drawing.panels.forEach(({ title, lines, level }, index) => {
    [x, y] = [0, y + 24 * scale];
    write(title, "--text", 650);
    for (const { label, color } of [...lines.filter(isThere), ...(level ? [{ ...level, color: "--base" }] : [])]) write(`● ${label}`, color);
    ctx.drawImage(canvases[index]!, 0, y + 4 * scale);
    y += canvases[index]!.height;
  });
  paper.toBlob((blob) => blob && save(blob, `${name}.png`));
}

// A job as it runs. Points and events share one gapless seq, so a point is never lost and never there twice: every (re)connection
// asks for what comes after the last seq that arrived, and what is not newer is dropped.
import { batch, signal } from "@preact/signals";
import { useEffect, useMemo } from "preact/hooks";
import { ApiError, get, TERMINAL, url } from "./client";
import type { Diagnosis, Event, Metric, Run } from "./client";

type Connection = "loading" | "live" | "reconnecting" | "ended";

const MAX_POINTS = 4000;
const MAX_EVENTS = 1000;
/** How many events that are no metrics one load looks for, and in how many pages at most. */
const [MESSAGES, PAGES] = [15, 5];
const FLUSH_MS = 50;
const FIRST_WAIT_MS = 1000;
const LONGEST_WAIT_MS = 10_000;

export class LiveJob {
  readonly run = signal<Run | null>(null);
  readonly diagnosis = signal<Diagnosis | null>(null);
  /** Oldest first, appended to in place; `version` changes when there are more. */
  readonly points: Metric[] = [];
  readonly version = signal(0);
  /** Newest first; `moreEvents` says whether there are older ones to load. */
  readonly events = signal<Event[]>([]);
  readonly moreEvents = signal(false);
  readonly connection = signal<Connection>("loading");
  /** Why there is nothing to show. */
  readonly error = signal<ApiError | null>(null);

  private last = 0;
  private newEvents: Event[] = [];
  private flushing = 0;
  private waiting = 0;
  private wait = FIRST_WAIT_MS;
  private loaded = false;
  private source: EventSource | null = null;
  private attempt = new AbortController();

  constructor(readonly id: string) {}

  /** Load, then follow; return what ends it. */
  start = (): (() => void) => {
    // A browser gives an origin six connections: tabs that nobody looks at hold none.
    const seen = () => (document.hidden ? this.leave() : void this.connect());
    document.addEventListener("visibilitychange", seen);
    void this.connect();
    return () => {
      document.removeEventListener("visibilitychange", seen);
      this.leave();
    };
  };

  loadMoreEvents = async (abort?: AbortSignal): Promise<void> => {
    let messages = 0;
    for (let page = 0; page < PAGES && messages < MESSAGES; page++) {
      const after = this.events.peek().at(-1)?.id;
      const { data, has_more } = await get("/v1/fine_tuning/jobs/{job_id}/events", { job_id: this.id, after, limit: 100 }, abort);
      const known = new Set([...this.events.peek(), ...this.newEvents].map((event) => event.id));
      const older = data.filter((event) => !known.has(event.id));
      messages += older.filter((event) => event.type === "message").length;
      batch(() => {
        this.events.value = [...this.events.peek(), ...older];
        this.moreEvents.value = has_more;
      });
      if (!has_more) return;
    }
  };

  private leave(): void {
    this.attempt.abort();
    this.source?.close();
    this.source = null;
    clearTimeout(this.waiting);
  }

  private connect = async (): Promise<void> => {
    if (this.connection.peek() === "ended") return;
    this.leave();
    const { signal: abort } = (this.attempt = new AbortController());
    try {
      // It says what is wrong, where EventSource would not.
      const run = get("/api/jobs/{job_id}", { job_id: this.id }, abort).then((found) => (this.run.value = found));
      if (!this.loaded) {
        this.events.value = [];
        const figures = get("/api/jobs/{job_id}/metrics", { job_id: this.id, max_points: MAX_POINTS }, abort);
        const [page] = await Promise.all([figures, run]);
        this.points.splice(0, Infinity, ...page.data);
        this.last = page.next;
        this.version.value++;
        await this.loadMoreEvents(abort); // after the figures, so that none falls between the two and the stream
        this.loaded = true;
      }
      await run;
    } catch (error) {
      if (abort.aborted) return;
      const known = error instanceof ApiError ? error : new ApiError(String(error), 0);
      if (known.status >= 400 && known.status < 500) this.connection.value = "ended";
      else this.retry();
      if (!this.loaded || known.status === 404) this.error.value = known;
      return;
    }
    this.error.value = null;
    if (!abort.aborted && !document.hidden) this.listen();
  };

  private retry(): void {
    this.leave();
    this.connection.value = "reconnecting";
    this.waiting = window.setTimeout(this.connect, this.wait);
    this.wait = Math.min(2 * this.wait, LONGEST_WAIT_MS);
  }

  private listen(): void {
    const source = (this.source = new EventSource(url("/api/jobs/{job_id}/stream", { job_id: this.id, after: this.last })));
    source.onopen = () => {
      this.wait = FIRST_WAIT_MS;
      this.connection.value = "live";
    };
    source.onerror = () => {
      if (source.readyState === EventSource.CLOSED) this.retry();
      else this.connection.value = "reconnecting";
    };
    source.addEventListener("metric", (message) => {
      if (this.isNew(message)) this.points.push(JSON.parse(message.data));
    });
    source.addEventListener("event", (message) => {
      if (this.isNew(message)) this.newEvents.push(JSON.parse(message.data));
    });
    source.addEventListener("job", (message) => (this.run.value = JSON.parse(message.data)));
    source.addEventListener("diagnosis", (message) => (this.diagnosis.value = JSON.parse(message.data)));
    source.addEventListener("end", () => {
      this.leave();
      this.flush();
      this.connection.value = "ended";
    });
  }

  private isNew(message: MessageEvent): boolean {
    const seq = Number(message.lastEventId);
    if (seq <= this.last) return false;
    this.last = seq;
    this.flushing ||= window.setTimeout(this.flush, FLUSH_MS);
    return true;
  }

  private flush = (): void => {
    clearTimeout(this.flushing);
    this.flushing = 0;
    const known = new Set(this.events.peek().map((event) => event.id));
    const news = this.newEvents.filter((event) => !known.has(event.id)).reverse();
    this.newEvents = [];
    batch(() => {
      this.version.value++;
      if (!news.length) return;
      const all = [...news, ...this.events.peek()];
      this.events.value = all.slice(0, MAX_EVENTS);
      if (all.length > MAX_EVENTS) this.moreEvents.value = true;
    });
  };
}

/** Follow a job for as long as the component is there. */
export function useLive(id: string): LiveJob {
  const live = useMemo(() => new LiveJob(id), [id]);
  useEffect(() => live.start(), [live]);
  return live;
}

export const isOver = (run: Run): boolean => TERMINAL.includes(run.status);

// What a screen loads, again and again if it wants.
import { useEffect, useRef, useState } from "preact/hooks";
import { isAbort } from "../api/client";

export interface Loaded<T> {
  /** The newest answer, kept while the next one is under way. */
  data: T | null;
  error: Error | null;
  busy: boolean;
  reload: () => Promise<void>;
}

/** Load when `deps` change and, with `every` (ms), repeatedly while the page is seen. A late answer to an old question is dropped. */
export function useLoad<T>(load: (signal: AbortSignal) => Promise<T>, deps: readonly unknown[], every?: number): Loaded<T> {
  const [state, setState] = useState<Omit<Loaded<T>, "reload">>({ data: null, error: null, busy: true });
  const again = useRef(async () => {});
  useEffect(() => {
    const stop = new AbortController();
    let timer = 0;
    const go = async () => {
      clearTimeout(timer);
      try {
        const data = await load(stop.signal);
        if (!stop.signal.aborted) setState({ data, error: null, busy: false });
      } catch (error) {
        if (stop.signal.aborted || isAbort(error)) return;
        setState((before) => ({ ...before, error: error as Error, busy: false }));
      }
      if (every && !stop.signal.aborted && !document.hidden) timer = window.setTimeout(go, every);
    };
    again.current = () => {
      setState((before) => ({ ...before, busy: true }));
      return go();
    };
    if (every) document.addEventListener("visibilitychange", () => document.hidden || void go(), { signal: stop.signal });
    void again.current();
    return () => {
      stop.abort();
      clearTimeout(timer);
    };
  }, deps);
  return { ...state, reload: () => again.current() };
}

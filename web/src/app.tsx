// The frame around every screen, and which screen a path shows.
import type { ComponentType } from "preact";
import { useEffect, useErrorBoundary, useState } from "preact/hooks";
import { get } from "./api/client";
import { Link, path } from "./router";
import { ErrorNote, LinkButton, Overlays, Page, Skeleton, theme, toggleTheme } from "./ui";

/** A screen is the default export of its module; `id` is the job's of /jobs/{id}, else "". */
type Screen = ComponentType<{ id: string }>;
type Loader = () => Promise<{ default: Screen }>;

const ROUTES: [RegExp, Loader][] = [
  [/^\/$/, () => import("./screens/jobs")],
  [/^\/jobs\/new$/, () => import("./screens/new-job")],
  [/^\/jobs\/([^/]+)$/, () => import("./screens/job")],
  [/^\/compare$/, () => import("./screens/compare")],
  [/^\/try$/, () => import("./screens/try")],
  [/^\/models$/, () => import("./screens/models")],
  [/^\/files$/, () => import("./screens/files")],
];

const NAV = [
  ["/", "Jobs"],
  ["/jobs/new", "New job"],
  ["/compare", "Compare"],
  ["/try", "Try"],
  ["/models", "Models"],
  ["/files", "Files"],
] as const;

export function App() {
  return (
    <>
      <a class="skip" href="#main">Skip to content</a>
      <header class="top">
        <Link to="/" class="brand" aria-label="Tunesmith">
          <svg viewBox="0 0 32 32" width="20" height="20" aria-hidden="true">
            <path d="M4 6c4 12 10 16 24 18" fill="none" stroke="var(--accent)" stroke-width="4" stroke-linecap="round" />
            <circle cx="27" cy="24" r="4" fill="var(--full)" />
          </svg>
          <span>Tunesmith</span>
        </Link>
        <nav aria-label="Main">
          {NAV.map(([to, label]) => <Link key={to} to={to} aria-current={path.value === to ? "page" : undefined}>{label}</Link>)}
        </nav>
        <ThemeToggle />
      </header>
      <Routed key={path.value} />
      <Overlays />
    </>
  );
}

function ThemeToggle() {
  const other = theme.value === "dark" ? "light" : "dark";
  return (
    <button type="button" class="button ghost small" aria-label={`Use the ${other} theme`} title={`Use the ${other} theme`} onClick={toggleTheme}>
      <svg viewBox="0 0 16 16" width="16" height="16" aria-hidden="true">
        <circle cx="8" cy="8" r="6" fill="none" stroke="currentColor" stroke-width="1.5" />
        <path d="M8 2a6 6 0 0 1 0 12z" fill="currentColor" />
      </svg>
    </button>
  );
}

function Routed() {
  const here = path.peek();
  const [, load] = ROUTES.find(([pattern]) => pattern.test(here)) ?? [];
  const [broken, reset] = useErrorBoundary();
  if (broken) return <Page title="Something went wrong"><ErrorNote error={broken} retry={reset} /></Page>;
  return load ? <Lazy load={load} id={/^\/jobs\/(.+)$/.exec(here)?.[1] ?? ""} /> : <NotFound />;
}

function Lazy({ load, id }: { load: Loader; id: string }) {
  const [Loaded, setLoaded] = useState<Screen | null>(null);
  const [error, setError] = useState<Error | null>(null);
  useEffect(() => {
    const failed = async (problem: Error) => {
      await get("/api/jobs", { limit: 1 }).catch(() => {}); // asks to log in, where that is what is wrong
      setError(problem);
    };
    load().then((module) => setLoaded(() => module.default), failed);
  }, []);
  if (error) {
    return (
      <Page title="This page could not be loaded">
        <ErrorNote error="The server cannot be reached, or it is a newer one than this page." retry={() => location.reload()} />
      </Page>
    );
  }
  return Loaded ? <Loaded id={id} /> : <main id="main" class="page"><Skeleton height={400} /></main>;
}

function NotFound() {
  return (
    <Page title="Page not found">
      <p>There is nothing at <code>{path.value}</code>.</p>
      <LinkButton to="/">Go to the jobs</LinkButton>
    </Page>
  );
}

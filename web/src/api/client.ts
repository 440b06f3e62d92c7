// The API in types made from its OpenAPI (web/build.py). Every failure is an ApiError whose message can be shown as it is.
import type { components, paths } from "./schema";

type Schemas = components["schemas"];
export type Job = Schemas["Job"];
export type Status = Job["status"];
export type Run = Schemas["Run"];
export type JobOverview = Schemas["JobOverview"];
export type JobOverviewList = Schemas["JobOverviewList"];
export type Metric = Schemas["Metric"];
export type MetricData = Schemas["MetricData"];
export type Event = Schemas["Event"];
export type Checkpoint = Schemas["Checkpoint"];
export type Diagnosis = Schemas["Diagnosis"];
export type Finding = Schemas["Finding"];
export type Severity = Finding["severity"];
export type CreateJob = Schemas["CreateJob"];
export type Resolution = Schemas["Resolution"];
export type HyperparameterInfo = Schemas["HyperparameterInfo"];
export type File = Schemas["File"];
export type FileOverview = Schemas["FileOverview"];
export type FileOverviewList = Schemas["FileOverviewList"];
export type DataReport = Schemas["DataReport"];
export type RenderedRow = Schemas["RenderedRow"];
export type FileRow = Schemas["FileRow"];
export type ModelOverview = Schemas["ModelOverview"];
export type UsedBy = Schemas["UsedBy"];

export const TERMINAL: readonly Status[] = ["succeeded", "failed", "cancelled"];

export class ApiError extends Error {
  /** `status` is 0 when no answer came. */
  constructor(message: string, readonly status: number, readonly param: string | null = null) {
    super(message);
  }
}

type Method = "get" | "post" | "delete";
type Path<M extends Method> = { [P in keyof paths]: paths[P] extends Record<M, object> ? P : never }[keyof paths];
type Known<T> = [NonNullable<T>] extends [never] ? object : NonNullable<T>;
type Params<O> = O extends { parameters: { path?: infer P; query?: infer Q } } ? Known<P> & Known<Q> : never;
type Answer<O> = O extends { responses: { 200: { content: { "application/json": infer T } } } } ? T : never;
type Body<O> = O extends { requestBody: { content: { "application/json": infer T } } } ? T : undefined;
/** Parameters may be left out where none is required. */
type Rest<O> = object extends Params<O> ? [params?: Params<O>, signal?: AbortSignal] : [params: Params<O>, signal?: AbortSignal];

/** Fill the path's {names} from `params`; what is left of those that have a value is the query. */
export function url<P extends Path<"get">>(path: P, params: Params<paths[P]["get"]>): string {
  return filled(path, params);
}

function filled(path: string, params: object = {}): string {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(params)) {
    if (value === null || value === undefined || value === "") continue;
    if (path.includes(`{${name}}`)) path = path.replace(`{${name}}`, encodeURIComponent(value));
    else query.set(name, value);
  }
  return query.size ? `${path}?${query}` : path;
}

/** Fetch and return the response if it is a good one; its body may still be arriving. */
export async function open(path: string, init?: RequestInit): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(path, init);
  } catch (error) {
    throw isAbort(error) ? error : new ApiError("The server cannot be reached.", 0);
  }
  if (!response.ok) await fail(response.status, await response.text().catch(() => ""));
  return response;
}

async function fail(status: number, body: string): Promise<never> {
  if (status === 401) {
    location.assign(`/login?next=${encodeURIComponent(location.pathname + location.search)}`);
    await new Promise(() => {}); // the page is being left
  }
  let told: { message?: string; param?: string | null } | undefined;
  try {
    told = JSON.parse(body).error;
  } catch {
    // not ours: a proxy's page, or nothing
  }
  throw new ApiError(told?.message ?? `The server answered ${status} and did not say why.`, status, told?.param ?? null);
}

export const isAbort = (error: unknown): boolean => error instanceof DOMException && error.name === "AbortError";

/** get("/api/jobs/{job_id}/metrics", { job_id, max_points: 100 }, signal) */
export async function get<P extends Path<"get">>(path: P, ...[params, signal]: Rest<paths[P]["get"]>): Promise<Answer<paths[P]["get"]>> {
  return (await open(filled(path, params), signal && { signal })).json();
}

export async function post<P extends Path<"post">>(path: P, params: Params<paths[P]["post"]>, body?: Body<paths[P]["post"]>, signal?: AbortSignal): Promise<Answer<paths[P]["post"]>> {
  return (await open(filled(path, params), sending(body, signal))).json();
}

export async function del<P extends Path<"delete">>(path: P, params: Params<paths[P]["delete"]>): Promise<Answer<paths[P]["delete"]>> {
  return (await open(filled(path, params), { method: "DELETE" })).json();
}

/** Return what `open` needs to send `body` as JSON. */
export function sending(body: unknown, signal?: AbortSignal): RequestInit {
  const json = body === undefined ? {} : { body: JSON.stringify(body), headers: { "content-type": "application/json" } };
  return { method: "POST", ...json, ...(signal && { signal }) };
}

/** Yield the lines of a response as they arrive, blank ones left out (NDJSON, or `data: ` lines of a completion). */
export async function* lines(response: Response): AsyncGenerator<string> {
  let rest = "";
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      const found = (rest + part.value).split("\n");
      rest = found.pop()!;
      yield* found.map((line) => line.trimEnd()).filter(Boolean);
    }
  } catch (error) {
    throw isAbort(error) ? error : new ApiError("The connection to the server was lost.", 0);
  } finally {
    void reader.cancel().catch(() => {});
  }
  if (rest.trim()) yield rest.trim();
}

/** Upload a training or validation file; `onProgress` hears the share that was sent. */
export function upload(file: Blob & { name: string }, onProgress?: (share: number) => void, signal?: AbortSignal): Promise<File> {
  const form = new FormData();
  form.set("purpose", "fine-tune");
  form.set("file", file, file.name);
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest(); // fetch tells no progress of what it sends
    request.open("POST", "/v1/files");
    request.upload.onprogress = (event) => onProgress?.(event.loaded / event.total);
    request.onload = () =>
      request.status < 400 ? resolve(JSON.parse(request.response)) : fail(request.status, request.response).catch(reject);
    request.onerror = () => reject(new ApiError("The upload was cut off: the server cannot be reached.", 0));
    request.onabort = () => reject(new DOMException("Aborted", "AbortError"));
    signal?.addEventListener("abort", () => request.abort());
    request.send(form);
  });
}

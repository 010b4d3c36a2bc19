/** The served model, and how full its cache is. */

import { ask } from "./server.js";

const BUSY = 1000;
const IDLE = 10000;
const UNREACHABLE = 3000;
const number = new Intl.NumberFormat("en");
const field = (id) => document.getElementById(id);

/** Polls the server while the page is visible. Calls `refused` with the Problem of a failed request. */
export class Status {
  model = null;
  #stale = true;
  #busy = false;
  #refused;
  #timer = 0;
  #asking = false;

  constructor(refused) {
    this.#refused = refused;
    document.addEventListener("visibilitychange", () => this.refresh());
  }

  /** Whether an answer is being received; then it polls more often. */
  set busy(value) {
    this.#busy = value;
    this.refresh();
  }

  /** Also asks for the model, because it may have changed. */
  renew() {
    this.#stale = true;
    this.refresh();
  }

  async refresh() {
    clearTimeout(this.#timer);
    if (this.#asking || document.hidden) return;
    this.#asking = true;
    let pause;
    try {
      if (this.#stale) this.#showModel((await (await ask("v1/models")).json()).data[0]);
      showCache(readMetrics(await (await ask("metrics")).text()));
      pause = this.#busy ? BUSY : IDLE;
    } catch (problem) {
      this.#stale = true;
      field("cache").hidden = true;
      field("context").textContent = problem.message;
      this.#refused(problem);
      pause = problem.status === 401 ? 0 : UNREACHABLE; // without another key there is nothing to ask
    } finally {
      this.#asking = false;
    }
    if (pause) this.#timer = setTimeout(() => this.refresh(), pause);
  }

  #showModel({ id, max_model_len: context }) {
    this.model = id;
    this.#stale = false;
    field("model").textContent = id;
    field("context").textContent = context ? `${number.format(context)} tokens of context` : "";
    document.title = `${id} – faquant`;
  }
}

/** The samples without labels of a text in Prometheus' format. */
function readMetrics(text) {
  const samples = text.split("\n").map((line) => line.match(/^faquant_(\w+) (\S+)$/)).filter(Boolean);
  return Object.fromEntries(samples.map(([, name, value]) => [name, Number(value)]));
}

function showCache(metrics) {
  const share = (pages) => (metrics.cache_pages ? (100 * pages) / metrics.cache_pages : 0);
  const [used, kept] = [share(metrics.cache_pages_used), share(metrics.cache_pages_idle)];
  const bar = field("cache-bar");
  bar.ariaValueNow = String(Math.round(used));
  bar.ariaValueText = `${percent(used)} in use, ${percent(kept)} kept for prompts that begin alike`;
  bar.title = `${bar.ariaValueText}, of ${number.format(metrics.cache_pages * metrics.cache_page_tokens)} tokens`;
  bar.querySelector(".used").style.width = `${used}%`;
  bar.querySelector(".kept").style.width = `${kept}%`;
  field("cache-text").textContent = `Cache ${percent(used)}, kept ${percent(kept)}`;
  const waiting = metrics.sequences_waiting ? `, ${number.format(metrics.sequences_waiting)} waiting` : "";
  field("load-text").textContent = ` · ${number.format(metrics.sequences_running)} running${waiting}`;
  field("cache").hidden = false;
}

const percent = (share) => `${share > 0 && share < 1 ? "<1" : Math.round(share)} %`;

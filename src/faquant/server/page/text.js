/** Growing text with one element per line, so that existing lines need no new layout. */

const FENCE = "```";

export class GrowingText {
  #element;
  #node = null; // the text node of the current line
  #inCode = false;

  constructor(element) {
    this.#element = element;
  }

  append(text) {
    text.split("\n").forEach((piece, index) => {
      if (index > 0 || this.#node === null) this.#beginLine();
      if (piece === "") return;
      if (!this.#node.parentNode) this.#element.lastChild.replaceChildren(this.#node);
      this.#node.appendData(piece);
      if (this.#isFence) this.#element.lastChild.className = "code fence";
    });
  }

  get #isFence() {
    return this.#node?.data.startsWith(FENCE);
  }

  #beginLine() {
    if (this.#isFence) this.#inCode = !this.#inCode;
    const line = document.createElement("div");
    if (this.#inCode) line.className = "code";
    line.append(document.createElement("br")); // otherwise, copied text would lose empty lines
    this.#node = document.createTextNode("");
    this.#element.append(line);
  }
}

/** Calls `work` before the next frame or at `now()`, because tabs in the background have no frames. */
export class Frame {
  #work;
  #handle = 0;

  constructor(work) {
    this.#work = work;
  }

  soon() {
    this.#handle ||= requestAnimationFrame(() => this.now());
  }

  now() {
    cancelAnimationFrame(this.#handle);
    this.#handle = 0;
    this.#work();
  }
}

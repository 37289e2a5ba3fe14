"use strict";
// Page of `narcli view`: runs and orders, pass by pass. Text of the data goes into text nodes only.
(() => {
  const DATA = JSON.parse(document.getElementById("data").textContent);
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const page = document.getElementById("page"), touch = matchMedia("(pointer: coarse)").matches;
  const GAP = 10, LABEL = 18, PLAY_SECONDS = 7, CELLS_LISTED = 40;

  // --- elements, colours, words ---

  function make(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else element.setAttribute(name, value);
    }
    element.append(...children.filter((child) => child !== null));
    return element;
  }

  function icon(path) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const shape = document.createElementNS("http://www.w3.org/2000/svg", "path");
    for (const [name, value] of [["viewBox", "0 0 16 16"], ["width", "16"], ["height", "16"], ["aria-hidden", "true"]])
      svg.setAttribute(name, value);
    shape.setAttribute("d", path);
    svg.append(shape);
    return svg;
  }

  const STOPS = DATA.ramp.map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  const TABLE = Array.from({ length: 256 }, (_, k) => {
    const place = (k / 255) * (STOPS.length - 1), stop = Math.min(Math.floor(place), STOPS.length - 2);
    const mixed = STOPS[stop].map((from, c) => Math.round(from + (STOPS[stop + 1][c] - from) * (place - stop)));
    return `rgb(${mixed.join(",")})`;
  });
  const ramp = (share) => TABLE[Math.round(255 * Math.min(1, Math.max(0, share)))];

  let palette = {};
  function readPalette() {
    const style = getComputedStyle(document.documentElement);
    for (const name of ["empty", "check", "text", "muted", "now", "choice", "line", "surface", "later", "right", "down", "back"])
      palette[name] = style.getPropertyValue(`--${name}`).trim();
  }

  const count = (number, noun, nouns = `${noun}s`) => `${number.toLocaleString("en")} ${number === 1 ? noun : nouns}`;
  const percent = (share) => {
    const value = 100 * share;
    if (value > 0 && value < 0.01) return "< 0.01 %";
    return `${value.toFixed(value >= 99.95 || value === 0 ? 0 : value >= 0.1 ? 1 : 2)} %`;
  };
  const bits = (value) => `${value.toFixed(2)} bits`;

  // Explanations, shown under the mouse.
  const TERMS = {
    pass: "cells that the network decodes together",
    token: "number of the code that was drawn",
    probability: "of the drawn code, after guidance, temperature, top-k and top-p",
    rank: "place of the drawn code among all codes; 1 is the likeliest",
    entropy: "how unsure the model was of a cell, in bits; 0 is certain, 1 a choice between two equal codes",
    disagreement: "how much the axis heads differ on a cell (Jensen-Shannon divergence), in bits; 0 if they agree",
    head: "axis head: predicts a cell along one axis, from the cell before it on that axis",
    code: "number of a pattern; the tokenizer decodes codes to a picture",
    guidance: "weight of the class or prompt (classifier-free guidance)",
    temperature: "below 1 favours likely codes, 0 takes the likeliest",
    "top-k": "draws come from so many likeliest codes",
    "top-p": "draws come from the likeliest codes that together have this probability",
    seed: "the same seed and settings draw the same tokens",
    order: "which cells each pass decodes",
    illustrative: "in a run this order depends on the model; here it is drawn from the seed",
    share: "each run shows the first pass after which at least this share of its cells is done",
  };
  const term = (tag, words, name, ...more) => make(tag, TERMS[name] ? { title: TERMS[name] } : {}, words, ...more);

  // --- a run ---

  class Run {
    constructor(data, index) {
      Object.assign(this, data);
      this.index = index;
      this.cells = this.pass.length;
      this.members = Array.from({ length: this.steps }, () => []);
      this.pass.forEach((step, cell) => this.members[step].push(cell));
      let total = 0;
      this.done = this.members.map((cells) => (total += cells.length));
      total = 0;
      this.starts = this.planes.map(([rows, columns]) => (total += rows * columns) - rows * columns);
      this.holistic = Boolean(this.picture && this.picture.steps[0] >= 0);
      this.step = this.steps - 1;
      this.cell = -1;
      this.images = (this.picture ? this.picture.uris : []).map((uri) => {
        const image = new Image();
        image.addEventListener("load", () => this.view && this.view.draw());
        image.src = uri;
        return image;
      });
      this.neighbours = this.scales ? null : this.meanOf((cell) => this.knownNeighbours(cell));
      this.entropies = this.record ? this.meanOf((cell) => this.record.entropy[cell]) : null;
    }

    meanOf(value) {
      return this.members.map((cells) => cells.reduce((sum, cell) => sum + value(cell), 0) / cells.length);
    }

    // Plane, row and column of a cell.
    place(cell) {
      let plane = this.planes.length - 1;
      while (this.starts[plane] > cell) plane -= 1;
      const inside = cell - this.starts[plane], columns = this.planes[plane][1];
      return [plane, Math.floor(inside / columns), inside % columns];
    }

    // Coordinates as in the order: (row, column), and before them the slice of a clip, or the scale.
    name(cell) {
      const [plane, row, column] = this.place(cell);
      const space = "\u00a0";  // a name stays on its line
      const joined = (places) => `(${places.join(`,${space}`)})`;
      if (this.scales) return this.planes[plane].join("×") + space + joined([row, column]);
      return joined([plane, row, column].slice(-this.sizes.length));
    }

    at(plane, row, column) {
      const [rows, columns] = this.planes[plane] || [0, 0];
      return row < 0 || column < 0 || row >= rows || column >= columns ? -1 : this.starts[plane] + row * columns + column;
    }

    knownNeighbours(cell) {
      const [plane, row, column] = this.place(cell);
      const around = [[0, 0, 1], [0, 0, -1], [0, 1, 0], [0, -1, 0], [1, 0, 0], [-1, 0, 0]];
      return around.filter(([p, r, c]) => {
        const other = this.at(plane + p, row + r, column + c);
        return other >= 0 && this.pass[other] < this.pass[cell];
      }).length;
    }

    // Cells of coarser scales that cover the middle of a cell.
    coarser(cell) {
      const [plane, row, column] = this.place(cell), [rows, columns] = this.planes[plane];
      return this.planes.slice(0, plane).map(([height, width], index) =>
        this.at(index, Math.floor(((row + 0.5) / rows) * height), Math.floor(((column + 0.5) / columns) * width)));
    }

    // First pass after which this share of the cells is done.
    stepAt(share) {
      const step = this.done.findIndex((done) => done / this.cells >= share - 1e-9);
      return step < 0 ? this.steps - 1 : step;
    }

    sources(cell) {
      return this.from[cell].filter(([token]) => token >= 0)
        .map(([token, head, place]) => ({ token, head: this.heads[head], stands: place !== token ? place : -1 }));
    }

    listed(ranges) {
      return ranges.map(([first, end]) =>
        end - first === 1 ? this.name(first) : `${this.name(first)} to ${this.name(end - 1)}`).join(", ");
    }
  }

  const runs = DATA.runs.map((data, index) => new Run(data, index));
  const sheets = DATA.tiles.map((tiles) => {
    const image = new Image();
    image.addEventListener("load", () => runs.forEach((run) => run.view && run.view.inspect()));
    image.src = tiles.uri;
    return { ...tiles, image, index: new Map(tiles.codes.map((code, place) => [code, place])) };
  });

  // --- maps: a number for each cell, and its place on the ramp ---

  const top = (name) => Math.max(1e-9, ...runs.filter((run) => run.record && run.record[name])
    .map((run) => run.record[name].reduce((most, value) => Math.max(most, value === null ? 0 : value), 0)));
  const most = { entropy: top("entropy"), rank: Math.max(2, top("rank")), disagreement: top("disagreement") };
  const MAPS = {
    pass: {
      title: "pass", of: (run, cell) => run.pass[cell], share: (value, run) => value / Math.max(1, run.steps - 1),
      ends: (run) => ["pass 1", String(run.steps)],
    },
    entropy: {
      title: "entropy, bits", of: (run, cell) => run.record.entropy[cell], share: (value) => value / most.entropy,
      ends: () => ["0", most.entropy.toFixed(2)],
    },
    probability: {
      title: "probability", of: (run, cell) => run.record.probability[cell], share: (value) => value,
      ends: () => ["0", "1"],
    },
    rank: {
      title: "rank", of: (run, cell) => run.record.rank[cell],
      share: (value) => Math.log(value) / Math.log(most.rank), ends: () => ["1", String(most.rank)],
    },
    disagreement: {
      title: "disagreement, bits", of: (run, cell) => run.record.disagreement[cell],
      share: (value) => value / most.disagreement, ends: () => ["0", most.disagreement.toFixed(2)],
    },
  };
  const hasMap = (run, name) => name === "pass" || Boolean(run.record && run.record[name]);
  const state = { at: 0, map: "pass", link: "passes", playing: 0, pinned: false, clock: 0, width: 0 };

  // --- drawing ---

  function prepare(canvas, width, height) {
    const scale = window.devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
      canvas.style.height = `${height}px`;
    }
    const context = canvas.getContext("2d");
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    context.font = "12px system-ui, sans-serif";
    return context;
  }

  class Pane {
    constructor(run, kind, title) {
      this.run = run;
      this.kind = kind;
      this.caption = term("b", title, kind);
      this.legend = make("span", { class: "legend" });
      this.canvas = make("canvas", {
        tabindex: "0", role: "img", "aria-label": `${title} of ${run.title}; arrow keys move from cell to cell`,
      });
      this.figure = make("figure", { class: "pane" }, make("figcaption", {}, this.caption, this.legend), this.canvas);
      this.canvas.addEventListener("pointermove", (event) => event.pointerType === "mouse" && !state.pinned && choose(run, this.find(event)));
      this.canvas.addEventListener("pointerleave", () => !state.pinned && choose(run, -1));
      this.canvas.addEventListener("click", (event) => {
        const cell = this.find(event);
        state.pinned = cell >= 0 && !(state.pinned && cell === run.cell);
        const top = this.canvas.getBoundingClientRect().top;
        choose(run, state.pinned || event.pointerType !== "touch" ? cell : -1);
        scrollBy(0, this.canvas.getBoundingClientRect().top - top);  // words of runs above grow: this pane stays
        if (state.pinned && event.pointerType === "touch") this.reveal();
      });
      this.canvas.addEventListener("keydown", (event) => this.key(event));
    }

    key(event) {
      const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      if (!move || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      event.stopPropagation();
      const [plane, row, column] = this.run.place(Math.max(0, this.run.cell));
      const cell = this.run.cell < 0 ? 0 : this.run.at(plane, row + move[0], column + move[1]);
      const [rows, columns] = this.run.planes[plane + move[1]] || [0, 0];  // sideways into the next plane
      const next = move[1] ? this.run.at(plane + move[1], Math.min(row, rows - 1), move[1] < 0 ? columns - 1 : 0) : -1;
      state.pinned = true;
      choose(this.run, [cell, next, this.run.cell].find((each) => each >= 0));
    }

    // Scroll to the words about a cell where they are below the window, as far as the cell stays in it.
    reveal() {
      const words = this.run.view.cell.getBoundingClientRect(), bar = document.querySelector(".bar").getBoundingClientRect();
      const below = Math.min(words.bottom, words.top + 0.4 * innerHeight) - innerHeight + 8;
      const box = this.box(this.run.cell), room = this.canvas.getBoundingClientRect().top + (box ? box[1] : 0) - bar.bottom - 8;
      if (below > 0 && room > 0) scrollBy(0, Math.min(below, room));
    }

    // The rectangles of the planes, and the height of all.
    arrange(width) {
      const { run } = this;
      const whole = this.kind === "picture" && (run.holistic || run.scales);
      // A long row of tokens without a place is wrapped to a square.
      const wrapped = ([rows, columns]) => (rows === 1 && columns > 64 ? Array(2).fill(Math.ceil(Math.sqrt(columns))) : [rows, columns]);
      const shapes = whole ? [[run.picture.height, run.picture.width]] : run.planes.map(wrapped);
      const least = run.scales ? 100 : 120, room = Math.max(1, Math.floor((width + GAP) / (least + GAP)));
      const bands = Math.ceil(shapes.length / Math.min(room, shapes.length));
      const across = shapes.length === 1 ? 1 : Math.ceil(shapes.length / bands);
      const side = Math.floor(Math.min((width - GAP * (across - 1)) / across, shapes.length === 1 ? 460 : 300));
      const label = shapes.length > 1 ? LABEL : 0;
      const tall = side * Math.min(2, Math.max(...shapes.map(([rows, columns]) => (run.scales ? 1 : rows / columns))));
      this.boxes = shapes.map(([rows, columns], index) => ({
        x: (index % across) * (side + GAP), y: Math.floor(index / across) * (tall + label + GAP) + label,
        w: Math.min(side, (tall * columns) / rows), h: Math.min(tall, (side * rows) / columns), rows, columns, plane: whole ? -1 : index,
      }));
      return Math.ceil(shapes.length / across) * (tall + label + GAP) - GAP;
    }

    box(cell) {
      const [plane, row, column] = this.run.place(cell);
      const box = this.boxes.find((each) => each.plane === plane);
      if (!box) return null;
      const inside = row * this.run.planes[plane][1] + column, w = box.w / box.columns, h = box.h / box.rows;
      return [box.x + (inside % box.columns) * w, box.y + Math.floor(inside / box.columns) * h, w, h];
    }

    find(event) {
      const area = this.canvas.getBoundingClientRect(), x = event.clientX - area.left, y = event.clientY - area.top;
      for (const box of this.boxes || []) {
        const row = Math.floor(((y - box.y) / box.h) * box.rows), column = Math.floor(((x - box.x) / box.w) * box.columns);
        if (row < 0 || column < 0 || row >= box.rows || column >= box.columns) continue;
        if (box.plane >= 0) {
          const inside = row * box.columns + column, [height, wide] = this.run.planes[box.plane];
          return inside < height * wide ? this.run.starts[box.plane] + inside : -1;
        }
        if (!this.run.scales) return -1;
        const plane = this.run.step, [rows, columns] = this.run.planes[plane];
        return this.run.at(plane, Math.floor((row / box.rows) * rows), Math.floor((column / box.columns) * columns));
      }
      return -1;
    }

    draw() {
      const width = this.canvas.clientWidth;
      if (!width) return;
      const context = prepare(this.canvas, width, this.arrange(width)), { run } = this;
      this.explain();
      for (const box of this.boxes) {
        if (this.boxes.length > 1) {
          context.fillStyle = palette.muted;
          context.fillText(run.scales ? `${box.rows}×${box.columns}` : `t = ${box.plane}`, box.x, box.y - 6);
        }
        if (this.kind === "picture") this.paint(context, box);
      }
      if (this.kind !== "picture") for (let cell = 0; cell < run.cells; cell += 1) this.fill(context, cell);
      if (this.kind !== "order" && !run.scales) this.outline(context, run.members[run.step], palette.now, 1.5);
      this.mark(context);
    }

    // Title and legend of a map.
    explain() {
      if (this.kind === "picture") return;
      const map = MAPS[this.kind === "map" && hasMap(this.run, state.map) ? state.map : "pass"], [low, high] = map.ends(this.run);
      if (this.kind === "map") {
        this.caption.textContent = map.title;
        this.caption.title = TERMS[map.title.split(",")[0]];
      }
      const bar = make("canvas", { width: "70", height: "8", "aria-hidden": "true" }), context = bar.getContext("2d");
      for (let k = 0; k < 70; k += 1) {
        context.fillStyle = ramp(k / 69);
        context.fillRect(k, 0, 1, 8);
      }
      this.legend.replaceChildren(low, bar, high);
    }

    fill(context, cell) {
      const { run } = this, [x, y, w, h] = this.box(cell), gap = Math.min(w, h) >= 6 ? 1 : 0;
      const map = MAPS[this.kind === "map" && hasMap(run, state.map) ? state.map : "pass"], value = map.of(run, cell);
      const known = run.pass[cell] <= run.step && value !== null;
      context.fillStyle = !known ? palette.empty : ramp(map.share(value, run));
      if (this.kind === "order" && run.pass[cell] === run.step) context.fillStyle = palette.now;
      context.fillRect(x, y, w - gap, h - gap);
    }

    paint(context, box) {
      const { run } = this, { picture } = run;
      const latest = run.holistic ? picture.steps.findLastIndex((step) => step <= run.step) : 0;
      const image = run.images[Math.max(0, latest)];
      const each = box.plane < 0 ? picture.frames : Math.ceil(picture.frames / run.planes.length);
      const frame = Math.min(picture.frames - 1, Math.max(0, box.plane) * each + (state.clock % each));
      context.fillStyle = palette.empty;
      context.fillRect(box.x, box.y, box.w, box.h);
      if (!image.complete || !image.naturalWidth || latest < 0) return;
      context.imageSmoothingQuality = "high";
      context.drawImage(image, (frame % picture.columns) * picture.width, Math.floor(frame / picture.columns) * picture.height,
        picture.width, picture.height, box.x, box.y, box.w, box.h);
      context.strokeStyle = palette.line;
      context.lineWidth = 1;
      context.strokeRect(box.x + 0.5, box.y + 0.5, box.w - 1, box.h - 1);
      if (box.plane < 0) return;
      for (let cell = run.starts[box.plane]; cell < run.starts[box.plane] + box.rows * box.columns; cell += 1) {
        if (run.pass[cell] <= run.step) continue;
        const [, row, column] = run.place(cell), [x, y, w, h] = this.box(cell);
        context.fillStyle = (row + column) % 2 ? palette.empty : palette.check;
        const [left, upper] = [Math.floor(x), Math.floor(y)];
        context.fillRect(left, upper, Math.ceil(x + w) - left, Math.ceil(y + h) - upper);
      }
    }

    // Frames of cells; below each a wider one of the surface's colour, so that it is seen on any picture.
    outline(context, cells, color, width, dashes = []) {
      for (const [shade, wide] of [[palette.surface, width + 2], [color, width]]) {
        context.strokeStyle = shade;
        context.lineWidth = wide;
        context.setLineDash(shade === color ? dashes : []);
        for (const cell of cells) {
          const box = this.box(cell);
          if (!box || (shade !== color && box[2] < 6)) continue;
          context.strokeRect(box[0] + width / 2 - 0.5, box[1] + width / 2 - 0.5, box[2] - width, box[3] - width);
        }
      }
      context.setLineDash([]);
    }

    // The chosen cell, and what it was predicted from.
    mark(context) {
      const { run } = this, { cell } = run;
      if (cell < 0 || !this.box(cell)) return;
      const middle = (box) => [box[0] + box[2] / 2, box[1] + box[3] / 2];
      const empty = (run.holes[cell] || []).flatMap(([first, end]) => Array.from({ length: end - first }, (_, k) => first + k));
      this.outline(context, empty, palette.muted, 1, [2, 2]);
      if (run.scales) this.outline(context, run.coarser(cell), palette.down, 2);
      for (const { token, head, stands } of run.sources(cell)) {
        const color = palette[head], from = this.box(stands >= 0 ? stands : token);
        this.outline(context, [token], color, 2.5);
        if (stands >= 0) this.outline(context, [stands], color, 2, [3, 2]);
        const [x, y] = middle(from), [toX, toY] = middle(this.box(cell));
        context.lineWidth = 2;
        context.strokeStyle = color;
        context.beginPath();
        context.moveTo(x, y);
        context.lineTo(toX, toY);
        context.stroke();
      }
      this.outline(context, [cell], palette.choice, 2.5);
    }
  }

  // Cells of a clip in space, turned by dragging or by arrow keys.
  class Cube {
    constructor(run) {
      this.run = run;
      this.turn = [-0.65, 0.45];
      this.canvas = make("canvas", { tabindex: "0", role: "img", "aria-label": "cells in space; arrow keys turn them" });
      this.figure = make("figure", { class: "pane cube" },
        make("figcaption", {}, make("b", {}, "time, row, column"), make("span", {}, "drag to turn")), this.canvas);
      this.canvas.addEventListener("pointerdown", (event) => this.canvas.setPointerCapture(event.pointerId));
      this.canvas.addEventListener("pointermove", (event) => event.buttons && this.rotate(event.movementX / 120, event.movementY / 120));
      this.canvas.addEventListener("keydown", (event) => {
        const move = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] }[event.key];
        if (!move) return;
        event.preventDefault();
        event.stopPropagation();
        this.rotate(...move);
      });
    }

    rotate(right, down) {
      this.turn = [this.turn[0] + right, Math.min(1.5, Math.max(-1.5, this.turn[1] + down))];
      this.draw();
    }

    draw() {
      const { run } = this, width = this.canvas.clientWidth, height = Math.min(380, Math.max(240, width * 0.6));
      if (!width) return;
      const context = prepare(this.canvas, width, height), [slices, rows, columns] = run.sizes;
      const spread = (0.9 * Math.max(rows, columns)) / slices, size = (0.62 * Math.min(width, height)) / Math.max(rows, columns);
      const [cosA, sinA, cosB, sinB] = [Math.cos(this.turn[0]), Math.sin(this.turn[0]), Math.cos(this.turn[1]), Math.sin(this.turn[1])];
      const map = MAPS[hasMap(run, state.map) ? state.map : "pass"];
      const shown = run.pass.map((step, cell) => {
        const [t, r, c] = run.place(cell), x = c - (columns - 1) / 2, y = r - (rows - 1) / 2, z = (t - (slices - 1) / 2) * spread;
        const across = x * cosA + z * sinA, deep = z * cosA - x * sinA;
        return [width / 2 + size * across, height / 2 + size * (y * cosB + deep * sinB), deep * cosB - y * sinB, cell, step];
      }).sort((a, b) => b[2] - a[2]);
      for (const [x, y, , cell, step] of shown) {
        const value = map.of(run, cell), known = step <= run.step && value !== null, side = size * (known ? 0.8 : 0.22);
        context.fillStyle = !known ? palette.muted : step === run.step ? palette.now : ramp(map.share(value, run));
        context.globalAlpha = known ? 0.92 : 0.4;
        context.fillRect(x - side / 2, y - side / 2, side, side);
        context.strokeStyle = palette.surface;
        context.lineWidth = 0.8;
        if (known) context.strokeRect(x - side / 2, y - side / 2, side, side);
        if (cell === run.cell) {
          context.globalAlpha = 1;
          context.strokeStyle = palette.choice;
          context.lineWidth = 2.5;
          context.strokeRect(x - side / 2 - 2, y - side / 2 - 2, side + 4, side + 4);
        }
      }
      context.globalAlpha = 1;
    }
  }

  // Cells, entropy and known neighbours of each pass.
  class Chart {
    constructor(run) {
      this.run = run;
      this.canvas = make("canvas", { role: "img", "aria-label": `cells, entropy and known neighbours of each pass of ${run.title}` });
      const axes = 2 * run.sizes.length;
      this.canvas.title = `A click goes to a pass. Entropy: ${TERMS.entropy}.`;
      this.figure = make("figure", { class: "chart" }, this.canvas, run.neighbours && make("figcaption", {},
        `Known neighbours: of the up to ${axes} cells next to a cell, those of earlier passes. What it is predicted from can be fewer.`));
      const go = (event) => {
        const area = this.canvas.getBoundingClientRect(), share = (event.clientX - area.left) / area.width;
        goTo(run, Math.min(run.steps - 1, Math.max(0, Math.floor(share * run.steps))));
      };
      this.canvas.addEventListener("pointerdown", go);
      this.canvas.addEventListener("pointermove", (event) => event.buttons && go(event));
    }

    draw() {
      const { run } = this, width = this.canvas.clientWidth, tall = 38, head = 18;
      const strips = [["cells a pass", run.members.map((cells) => cells.length), (value) => String(value)]];
      if (run.entropies) strips.push(["mean entropy a pass", run.entropies, bits]);
      if (run.neighbours) strips.push(["known neighbours a cell", run.neighbours, (value) => value.toFixed(1)]);
      if (!width) return;
      const context = prepare(this.canvas, width, strips.length * (tall + head + 6));
      const wide = width / run.steps;
      strips.forEach(([title, values, words], index) => {
        const foot = (index + 1) * (tall + head + 6) - 6, high = Math.max(1e-9, ...values);
        context.textAlign = "left";
        context.fillStyle = palette.muted;
        context.fillText(title, 0, foot - tall - 5);
        context.textAlign = "right";
        if (width > 460) context.fillText(`up to ${words(high)}`, width, foot - tall - 5);
        context.textAlign = "left";
        context.fillStyle = palette.text;
        context.fillText(`${words(values[run.step])} in pass ${run.step + 1}`, 160, foot - tall - 5);
        values.forEach((value, step) => {
          context.fillStyle = step === run.step ? palette.now : step < run.step ? ramp(step / Math.max(1, run.steps - 1)) : palette.later;
          const height = Math.max(1, (tall * value) / high);
          context.fillRect(step * wide, foot - height, Math.max(wide - (wide > 3 ? 1 : 0), 0.6), height);
        });
        context.fillStyle = palette.now;
        context.fillRect(run.step * wide + wide / 2 - 0.75, foot - tall, 1.5, tall + 3);
      });
    }
  }

  // --- a run on the page ---

  class View {
    constructor(run) {
      this.run = run;
      const several = run.planes.length > 1;
      this.panes = [new Pane(run, "order", `order: ${run.order}`), run.picture ? new Pane(run, "picture", "picture so far") : null,
        run.record ? new Pane(run, "map", "pass") : null, several && !run.scales ? new Cube(run) : null].filter(Boolean);
      this.chart = new Chart(run);
      this.unsure = this.leastSure();
      this.rooms = [];
      this.now = make("p", { class: "now", "aria-live": "polite" });
      this.pass = make("aside", { class: "words of-pass" });
      this.cell = make("div", { class: "words of-cell" });
      const facts = Object.entries(run.facts).flatMap(([name, value], index) => [index ? " · " : "", term("span", `${name} ${value}`, name)]);
      this.body = make("div", { class: "body" },
        make("div", { class: "left" }, make("div", { class: several ? "panes wide" : "panes" }, ...this.panes.map((pane) => pane.figure)),
          this.chart.figure, this.cell),
        this.pass);
      this.section = make("section", { class: "run" },
        term("h2", run.title, run.title.includes("illustrative") ? "illustrative" : ""), make("p", { class: "facts" }, ...(facts.length ? facts : [run.extent])), this.now,
        this.body);
    }

    draw() {
      for (const pane of this.panes) pane.draw();
      this.chart.draw();
    }

    // Words about the current pass.
    tell() {
      const { run } = this, cells = run.members[run.step], done = run.done[run.step], share = done / run.cells;
      const raster = Math.ceil(share * run.raster - 1e-9);
      this.now.replaceChildren("pass ", make("b", {}, String(run.step + 1)),
        ` of ${run.steps} · ${done.toLocaleString("en")} of ${count(run.cells, "cell")}, ${percent(share)}`,
        run.order === "raster" ? "" : ` · raster order: ${count(raster, "pass", "passes")}`);
      const listed = cells.slice(0, CELLS_LISTED).map((cell) => run.name(cell)).join(" ");
      const more = cells.length > CELLS_LISTED ? ` and ${cells.length - CELLS_LISTED} more` : "";
      const places = run.scales ? "size of the scale (row, column)" : run.sizes.length === 3 ? "(time, row, column)" : run.sizes.length === 2 ? "(row, column)" : "(place)";
      this.pass.replaceChildren(...this.unsure, make("h3", {}, `Pass ${run.step + 1} decodes ${count(cells.length, "cell")}`),
        make("p", { class: "hint" }, `${places}, counted from 0`), make("p", { class: "cells" }, listed + more));
    }

    // Where the model was least sure, and how sure it was in all.
    leastSure() {
      const { run } = this;
      if (!run.record) return run.picture ? [make("p", { class: "hint" }, "This run has no record of how sure the model was.")] : [];
      const { entropy, probability, rank } = run.record;
      const order = run.pass.map((_, cell) => cell).sort((a, b) => entropy[b] - entropy[a]);
      const mean = entropy.reduce((sum, value) => sum + value, 0) / run.cells;
      const all = probability.reduce((sum, value) => sum - Math.log2(Math.max(value, 1e-45)), 0);
      const first = rank.filter((value) => value === 1).length / run.cells;
      return [term("h3", "Least sure", "entropy"),
        make("ul", {}, ...order.slice(0, 3).map((cell) => make("li", {},
          make("button", { class: "link", onclick: () => { state.pinned = true; choose(run, cell); } }, run.name(cell)),
          ` ${bits(entropy[cell])} in pass ${run.pass[cell] + 1}`))),
        make("p", { class: "hint" }, `Mean entropy ${bits(mean)}; ${percent(first)} of the draws are the likeliest code; ${all.toFixed(0)} bits in all.`)];
    }

    // Keep room for the cells of most words, so that nothing moves under the mouse.
    reserve() {
      const { run } = this, { cell, record } = run;
      if (!touch) {
        this.body.style.minHeight = "0";
        this.rooms = [];
        // Of the cells, those of the most lines and the longest: one for each length of words, up to 24.
        const words = (of) => this.origins(of).map((parts) => parts.filter((part) => typeof part === "string").join("").length);
        const unlike = new Map(run.pass.map((_, of) => [words(of), of]).map(([lengths, of]) => [String(lengths), [lengths.reduce((sum, length) => sum + 30 + length, 0), of]]));
        const codes = (of) => Number(record && !record.codes[of].includes(record.tokens[of]));
        const heads = (of) => (record && record.disagreement ? [...record.head_probability[of], record.disagreement[of]].filter((value) => value !== null).length : 0);
        const fullest = (score) => run.pass.reduce((most, _, of) => (score(of) > score(most) ? of : most), 0);
        for (run.cell of [...[...unlike.values()].sort((a, b) => b[0] - a[0]).slice(0, 24).map(([, of]) => of), fullest(codes), fullest(heads)]) this.inspect();
        run.cell = cell;
      }
      this.inspect();
    }

    inspect() {
      this.write();
      if (touch || page.clientWidth !== state.width) return;
      if (this.run.cell >= 0) [...this.cell.children].forEach((part, index) => {
        this.rooms[index] = Math.max(this.rooms[index] || 0, part.offsetHeight);
        part.style.minHeight = `${this.rooms[index]}px`;
      });
      this.body.style.minHeight = `${Math.max(parseFloat(this.body.style.minHeight || 0), this.body.offsetHeight)}px`;
    }

    write() {
      const { run } = this, { cell } = run;
      if (cell < 0) {
        this.cell.replaceChildren(make("p", { class: "hint" }, "Hover, tap or focus a cell to see what it was predicted from."));
        return;
      }
      this.cell.replaceChildren(make("div", {}, make("h3", {}, `Cell ${run.name(cell)}`),
        make("p", {}, `Decoded in pass ${run.pass[cell] + 1} of ${run.steps}. Cell ${cell}${run.scales ? "" : " in raster order"}, counted from 0.`),
        make("h3", {}, "Predicted from"), make("ul", {}, ...this.origins(cell).map((words) => make("li", {}, ...words)))),
      ...(run.record ? this.certainty(cell) : []));
    }

    // What a cell was predicted from, a list of parts a line.
    origins(cell) {
      const { run } = this, lines = [], regions = run.order.startsWith("par:") ? Math.sqrt(Number(run.order.slice(4))) : 0;
      const region = (other) => run.place(other).slice(1).map((at, axis) => Math.floor((at * regions) / run.sizes[axis])).join();
      const swatch = (head) => make("span", { class: `swatch ${head}` });
      for (const { token, head, stands } of run.sources(cell)) {
        const same = regions && region(token) === region(cell);
        const by = run.heads.length > 1 ? `, by the head ${head}` : !regions ? "" : same ? ", the last cell of its region" : ", of another region";
        lines.push(stands >= 0
          ? [swatch(head), `${run.name(token)}, a substitute at the place of ${run.name(stands)}, which was empty`]
          : [swatch(head), run.name(token) + by]);
      }
      const learned = run.from[cell].filter((source) => source[3] >= 0).map((source) => source[3]);
      if (learned.length) lines.push([`a learned vector, number ${learned[0]}, in place of a cell`]);
      if (run.scales && run.pass[cell] > 0) {
        lines.push([swatch("down"), `the scales before, summed: ${run.coarser(cell).map((other) => run.name(other)).join(", ")}`]);
      } else if (!lines.length) lines.push([this.alone(cell)]);
      const before = run.pass[cell] ? run.done[run.pass[cell] - 1] : 0;
      const unseen = (run.unseen[cell] || []).reduce((sum, [first, end]) => sum + end - first, 0);
      const seen = unseen ? `${before - unseen} of ${count(before, "cell")}` : before === 1 ? "the one cell" : `all ${count(before, "cell")}`;
      if (before && run.order !== "sjd") lines.push([`It sees ${seen} of the passes before.`]);
      if (unseen) lines.push([`Not seen: ${run.listed(run.unseen[cell])}`]);
      if (run.holes[cell]) lines.push([`Empty places that it attends to: ${run.listed(run.holes[cell])}`]);
      return lines;
    }

    // What a cell without predecessors is predicted from; MAR and MaskGIT see all cells so far around a learned token.
    alone(cell) {
      const { order, pass } = this.run;
      if (order === "sjd" && cell) return "the cell before it in raster order, which may be a draft";
      if (/^(mar|maskgit)/.test(order)) return pass[cell] ? "a learned token in its place" : "a learned token in its place, and the class or prompt";
      return "the class or prompt alone";
    }

    certainty(cell) {
      const { run } = this, { record } = run, token = record.tokens[cell];
      const pairs = [["token", String(token)], ["probability", percent(record.probability[cell])],
        ["rank", record.rank[cell] === 1 ? "1, the likeliest" : String(record.rank[cell])], ["entropy", bits(record.entropy[cell])]];
      if (record.disagreement) {
        run.heads.forEach((head, index) => {
          const share = record.head_probability[cell][index];
          if (share !== null) pairs.push([`head ${head}`, `${percent(share)}, entropy ${bits(record.head_entropy[cell][index])}`]);
        });
        if (record.disagreement[cell] !== null) pairs.push(["disagreement", bits(record.disagreement[cell])]);
      }
      const codes = record.codes[cell].map((code, index) => [code, record.probabilities[cell][index]]);
      if (!record.codes[cell].includes(token)) codes.push([token, record.probability[cell]]);
      return [make("div", {}, make("h3", {}, "Drawn"),
        make("dl", { class: "numbers" }, ...pairs.flatMap(([name, value]) => [term("dt", name, name.split(" ")[0]), make("dd", {}, value)])),
        run.heads.length > 1 && !record.disagreement ? make("p", { class: "hint" }, "The axis heads apart are recorded with ", make("code", {}, "--record heads"), ".") : null),
      make("div", {}, term("h3", "Likeliest codes", "code"),
        make("ol", { class: "codes" }, ...codes.map(([code, share]) => {
          const bar = make("i");
          bar.style.width = `${100 * share}%`;
          return make("li", code === token ? { class: "drawn" } : {}, this.tile(code), make("span", {}, String(code)),
            make("span", { class: "track" }, bar), make("span", { class: "share" }, percent(share)));
        })))];
    }

    tile(code) {
      const canvas = make("canvas", { width: "30", height: "30", "aria-hidden": "true" }), sheet = sheets[this.run.tiles];
      const place = sheet ? sheet.index.get(code) : undefined;
      if (place === undefined || !sheet.image.complete) return canvas;
      const { side, columns, image } = sheet, context = canvas.getContext("2d");
      context.imageSmoothingEnabled = side > 30;
      context.drawImage(image, (place % columns) * side, Math.floor(place / columns) * side, side, side, 0, 0, 30, 30);
      return canvas;
    }
  }

  // --- moving through passes ---

  const longest = Math.max(...runs.map((run) => run.steps));
  // Shares at which a run ends a pass, ascending: the stops of the slider where runs are linked by share.
  const shares = [...new Map(runs.flatMap((run) => run.done.map((done) => done / run.cells)).map((share) => [share.toFixed(9), share])).values()]
    .sort((a, b) => a - b);
  const stops = () => (state.link === "share" ? shares.length : longest);
  const slider = make("input", { type: "range", min: "0" });
  const measure = make("span", { class: "measure" });
  const where = make("p", { class: "where", "aria-live": "polite" });
  const PLAY = "M4 2.5v11l9.5-5.5z", PAUSE = "M3.5 2.5h3.2v11H3.5zM9.3 2.5h3.2v11H9.3z";
  const play = make("button", { type: "button", title: "play or pause (space)", "aria-label": "play" }, icon(PLAY));

  // Show a stop: of each run the first pass after which that share is done, or the pass of that number.
  function set(at) {
    const byShare = state.link === "share";
    state.at = Math.min(stops() - 1, Math.max(0, at));
    slider.max = String(stops() - 1);
    slider.value = String(state.at);
    measure.textContent = byShare ? `${percent(shares[state.at])} of the cells` : `pass ${state.at + 1} of ${longest}`;
    slider.setAttribute("aria-label", byShare ? "share of cells" : "pass");
    slider.setAttribute("aria-valuetext", measure.textContent);
    for (const run of runs) {
      run.step = byShare ? run.stepAt(shares[state.at]) : Math.min(state.at, run.steps - 1);
      run.view.tell();
      run.view.draw();
    }
    if (runs.length > 1) compareAll(byShare);
  }

  // What the runs need for the share, or have done after as many passes.
  function compareAll(byShare) {
    const words = runs.map((run) => [`${run.order} `, make("b", {}, byShare ? String(run.step + 1) : run.done[run.step].toLocaleString("en")),
      `${byShare ? "" : ` (${percent(run.done[run.step] / run.cells)})`}`, " · "]);
    where.replaceChildren(byShare ? `Passes for ${percent(shares[state.at])} of the cells: ` : `Cells after ${count(state.at + 1, "pass", "passes")}: `,
      ...words.flat().slice(0, -1));
  }

  // Move so that a run shows one of its passes.
  function goTo(run, step) {
    const share = run.done[step] / run.cells;
    set(state.link === "share" ? shares.findIndex((other) => other >= share - 1e-9) : step);
  }

  // Link runs by another measure, at the same place of the run that needs most passes.
  function link(name) {
    const run = runs.find((each) => each.steps === longest), { step } = run;
    state.link = name;
    goTo(run, step);
  }

  function choose(run, cell) {
    for (const other of runs) {
      const same = other === run || (JSON.stringify(other.planes) === JSON.stringify(run.planes));
      if (same && other.cell !== cell) {
        other.cell = cell;
        other.view.inspect();
        other.view.draw();
      }
    }
  }

  function toggle() {
    clearInterval(state.playing);
    state.playing = state.playing ? 0 : -1;
    play.replaceChildren(icon(state.playing ? PAUSE : PLAY));
    play.setAttribute("aria-label", state.playing ? "pause" : "play");
    if (!state.playing) return;
    if (state.at >= stops() - 1) set(0);
    const stride = Math.max(1, Math.round(stops() / 150)), frames = Math.ceil(stops() / stride);
    state.playing = setInterval(() => {
      set(state.at + stride);
      if (state.at >= stops() - 1) toggle();
    }, Math.min(700, (1000 * PLAY_SECONDS) / frames));
  }

  function selector(label, title, options, chosen, change) {
    const select = make("select", { "aria-label": label }, ...options.map(([value, words]) => make("option", { value }, words)));
    select.value = chosen;
    select.addEventListener("change", () => change(select.value));
    return make("label", { title }, `${label} `, select);
  }

  function theme(name) {
    document.documentElement.dataset.theme = name;
    readPalette();
    for (const run of runs) if (run.view) run.view.draw();
  }

  function build() {
    const maps = Object.keys(MAPS).filter((name) => runs.some((run) => hasMap(run, name)));
    if (maps.includes("entropy")) state.map = "entropy";
    if (runs.length > 1) state.link = "share";
    const choices = make("div", { class: "choices" });
    if (maps.length > 1) choices.append(selector("map", "numbers that the right pane of each run shows", maps.map((name) => [name, name]), state.map, (value) => { state.map = value; set(state.at); }));
    if (runs.length > 1) {
      const links = [["share", "share of cells"], ["passes", "passes"]];
      choices.append(selector("linked by", `what runs side by side have in common; share of cells: ${TERMS.share}`, links, state.link, link));
    }
    choices.append(make("button", { type: "button", title: "light or dark colours", "aria-label": "light or dark", onclick: () => theme(document.documentElement.dataset.theme === "light" ? "dark" : "light") }, "◐"));
    play.addEventListener("click", toggle);
    slider.addEventListener("input", () => set(Number(slider.value)));
    const step = (by, words, path) => make("button", { type: "button", title: words, "aria-label": words, onclick: () => set(state.at + by) }, icon(path));
    const [back, on] = runs.length > 1 ? ["back to where a run is one pass less far", "on to where a run is one pass further"] : ["one pass back", "one pass on"];
    const bar = make("div", { class: "bar" },
      make("div", { class: "buttons" }, step(-1, `${back} (←)`, "M11.5 2.5v11L4 8z"), play, step(1, `${on} (→)`, "M4.5 2.5v11L12 8z")),
      make("div", { class: "slide" }, slider, measure), choices, runs.length > 1 ? where : null);
    for (const run of runs) run.view = new View(run);
    const side = make("div", { class: "runs" }, ...runs.map((run) => run.view.section));
    side.style.setProperty("--runs", runs.length === 4 ? 2 : Math.min(3, runs.length));
    side.style.setProperty("--panes", Math.max(...runs.map((run) => run.view.panes.length)));  // panes of all runs have one size
    page.replaceChildren(bar, side, make("p", { class: "hint keys" },
      "← → pass · Home End first and last pass · space play · click keeps a cell · Esc lets go"));
    theme(document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: light)").matches ? "light" : "dark"));
    set(stops() - 1);
  }

  document.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const { tagName } = event.target;
    if (event.key === "Escape") {
      state.pinned = false;
      for (const run of runs) choose(run, -1);
    }
    if (tagName === "SELECT" || (tagName === "BUTTON" && event.key === " ")) return;
    const moves = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, Home: -Infinity, End: Infinity };
    if (event.key === " ") toggle();
    else if (event.key in moves) set(state.at + moves[event.key]);
    else return;
    event.preventDefault();
  });

  build();
  let waiting = 0;
  new ResizeObserver(() => {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(() => {
      if (page.clientWidth === state.width) return;
      state.width = page.clientWidth;
      for (const run of runs) {
        run.view.draw();
        run.view.reserve();
      }
    });
  }).observe(page);
  if (!still && runs.some((run) => run.picture && run.picture.frames > 1)) {
    setInterval(() => {
      state.clock += 1;
      for (const run of runs) for (const pane of run.view.panes) if (pane.kind === "picture") pane.draw();
    }, 160);
  }
})();

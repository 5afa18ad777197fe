// The browser of answers. It reads the JSON beside it and writes text nodes only: what a model wrote is never markup.
"use strict";
(() => {
  const PAGE = 5; // prompts shown at once
  const LONG = 6000; // characters of a text shown before the reader asks for the rest
  const NOT_ASKED = -1;
  const at = (id) => document.getElementById(id);

  // --- the page around it

  // What does not overflow needs no stop of the tab key to be scrolled.
  function stops() {
    for (const box of document.querySelectorAll(".scroll, .code, .body, .turn")) {
      const wide = box.scrollWidth > box.clientWidth + 1 || box.scrollHeight > box.clientHeight + 1;
      box.tabIndex = wide ? 0 : -1;
    }
  }

  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const details of opened) details.open = true;
  });
  addEventListener("afterprint", () => { for (const details of opened) details.open = false; });
  addEventListener("resize", stops);
  for (const details of document.querySelectorAll("details")) details.addEventListener("toggle", stops);
  stops();
  if (!at("data")) return;

  const data = JSON.parse(at("data").textContent);
  const filters = {};
  let found = [];
  let page = 0;

  // One against another, whichever way round they were compared: [place, turned], or nothing.
  const places = new Map();
  data.pairs.forEach(([one, other], place) => {
    places.set(one + " " + other, [place, false]);
    places.set(other + " " + one, [place, true]);
  });

  function make(tag, className, text) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  }

  function percent(p) {
    return (100 * p).toFixed(0) + "\u202f%";
  }

  // Probability that `left` is better than `right`; null: left open; undefined: not asked.
  function chance(sample, judge, left, right) {
    const known = places.get(left + " " + right);
    if (!known) return undefined;
    const p = sample.p[judge][known[0]];
    if (p === NOT_ASKED) return undefined;
    return p === null || !known[1] ? p : 1 - p;
  }

  function outcome(p) {
    if (p === null || p === undefined) return "none";
    return p > 0.5 ? "won" : p < 0.5 ? "lost" : "tie";
  }

  // --- controls

  function field(name, label, control, className) {
    const box = make("label", className || "", label);
    control.name = name;
    box.append(control);
    at("filters").append(box);
    filters[name] = control;
    control.addEventListener(control.tagName === "SELECT" ? "change" : "input", apply);
    return control;
  }

  function fill(select, options) {
    const kept = select.selectedIndex;
    select.replaceChildren(...options.map(([value, text]) => {
      const option = make("option", "", text);
      option.value = value;
      return option;
    }));
    select.selectedIndex = Math.max(0, kept);
  }

  function choice(name, label, options, className) {
    const select = make("select");
    fill(select, options);
    return field(name, label, select, className);
  }

  function values(key) {
    return [...new Set(data.samples.map((sample) => sample[key]))].filter(Boolean).sort();
  }

  const numbered = (names) => names.map((name, place) => [place, name]);

  function controls() {
    const search = make("input");
    search.type = "search";
    search.placeholder = "words in a prompt or an answer";
    search.setAttribute("aria-keyshortcuts", "/");
    field("search", "Search", search, "grow");
    for (const [key, label] of [["kind", "Category"], ["lang", "Language"]]) {
      const known = values(key);
      if (known.length > 1) choice(key, label, [["", "all"], ...known.map((value) => [value, value])]);
    }
    if (data.pairs.length && data.judges.length) {
      compared();
      choice("judge", "Judge", numbered(data.judges));
      choice("outcome", "Who won", []);
      outcomes();
      choice("order", "Order", [["", "as in the file"], ["clear", "clearest first"], ["close", "closest first"]]);
    }
    if (data.checkpoints.length > 2) {
      choice("show", "Answers of", [["", "these two"], ["all", "all " + data.checkpoints.length + " checkpoints"]]);
      if (!filters.left) filters.show.value = "all";
    }
    at("filters").addEventListener("submit", (event) => event.preventDefault());
    at("filters").hidden = at("keys").hidden = false;
  }

  // Two checkpoints; choosing one twice exchanges them.
  function compared() {
    const [left, right] = data.first;
    let before = [left, right];
    choice("left", "Left", numbered(data.checkpoints)).value = left;
    choice("right", "Right", numbered(data.checkpoints)).value = right;
    for (const [own, other, side] of [["left", "right", 0], ["right", "left", 1]]) {
      // Before `apply` hears of it: listeners run in their order, and this one is heard on its way down.
      filters[own].addEventListener("change", () => {
        if (filters[own].value === filters[other].value) filters[other].value = before[side];
        before = [filters.left.value, filters.right.value];
        outcomes();
      }, { capture: true });
    }
  }

  const left = () => Number(filters.left.value);
  const right = () => Number(filters.right.value);

  // The words of the outcomes name the checkpoints: "dpo won" rather than "left won".
  function outcomes() {
    if (!filters.outcome) return;
    const [one, other] = [left(), right()].map((place) => data.checkpoints[place]);
    const options = [["", "any"], ["won", one], ["lost", other], ["tie", "tie"], ["none", "no verdict"]];
    if (data.judges.length > 1) options.push(["split", "judges disagree"]);
    fill(filters.outcome, options);
  }

  // --- filtering

  const written = new Map();
  function wordsOf(sample) {
    if (!written.has(sample)) {
      const texts = [...sample.prompt.map((turn) => turn[1]), ...sample.answers.filter(Boolean).map((text) => text[0])];
      written.set(sample, texts.join("\n").toLowerCase());
    }
    return written.get(sample);
  }

  function fitsOutcome(sample) {
    const wanted = filters.outcome ? filters.outcome.value : "";
    if (!wanted) return true;
    if (wanted !== "split") return outcome(chance(sample, filters.judge.value, left(), right())) === wanted;
    const said = new Set(data.judges.map((_, judge) => outcome(chance(sample, judge, left(), right()))));
    return said.has("won") && said.has("lost");
  }

  function fits(sample, query) {
    return (!filters.kind || !filters.kind.value || sample.kind === filters.kind.value)
      && (!filters.lang || !filters.lang.value || sample.lang === filters.lang.value)
      && fitsOutcome(sample)
      && (!query || wordsOf(sample).includes(query));
  }

  function query() {
    return filters.search.value.trim().toLowerCase();
  }

  // Whoever has no verdict comes last in both orders.
  function margin(sample) {
    const p = chance(sample, filters.judge.value, left(), right());
    return p === null || p === undefined ? null : Math.abs(p - 0.5);
  }

  function sorted(samples) {
    const order = filters.order ? filters.order.value : "";
    if (!order) return samples;
    const sign = order === "clear" ? -1 : 1;
    const keyed = samples.map((sample) => [sample, margin(sample)]);
    keyed.sort(([, a], [, b]) => (a === null) - (b === null) || sign * (a - b));
    return keyed.map(([sample]) => sample);
  }

  function apply() {
    const wanted = query();
    found = sorted(data.samples.filter((sample) => fits(sample, wanted)));
    page = 0;
    show();
  }

  // --- showing

  // Text with the searched words marked. Where lower case changes the length, places would not match: no marks then.
  function write(node, text, wanted) {
    const lower = text.toLowerCase();
    let from = 0;
    if (wanted && lower.length === text.length) {
      for (let hit = lower.indexOf(wanted), marks = 0; hit >= 0 && marks < 100; marks += 1) {
        node.append(text.slice(from, hit), make("mark", "", text.slice(hit, hit + wanted.length)));
        from = hit + wanted.length;
        hit = lower.indexOf(wanted, from);
      }
    }
    node.append(text.slice(from));
  }

  // `kept`: the text, and its whole length where the page has a part of it only.
  function textBox(kept, className, name, wanted) {
    const [text, whole] = kept;
    const box = make("div", className);
    const inner = make("div", "text");
    inner.dir = "auto";
    box.append(inner);
    box.setAttribute("role", "group");
    box.setAttribute("aria-label", name);
    write(inner, text.slice(0, LONG), wanted);
    if (text.length > LONG) {
      const more = make("button", "link", "Show all " + text.length.toLocaleString("en") + " characters");
      more.type = "button";
      more.addEventListener("click", () => {
        inner.replaceChildren();
        write(inner, text, query());
        more.remove();
        stops();
        box.focus();
      });
      box.append(more);
    }
    if (whole) box.append(make("p", "note", "Cut here: the whole text has " + whole.toLocaleString("en") + " characters."));
    return box;
  }

  function turn([role, ...kept], last, wanted) {
    const box = textBox(kept, "turn" + (last ? " asked" : ""), last ? "Prompt" : role, wanted);
    if (!last) box.prepend(make("span", "role", role));
    return box;
  }

  // Of the two that are compared, what each judge gives this one; else, against how many others it is preferred.
  function scoresOf(sample, place, against) {
    const list = make("dl", "scores");
    data.judges.forEach((judge, number) => {
      const all = (against === null ? numbered(data.checkpoints).map(([other]) => other) : [against])
        .map((other) => chance(sample, number, place, other)).filter((p) => p !== undefined);
      if (!all.length) return;
      const won = all.filter((p) => p > 0.5).length;
      const single = against !== null;
      const p = all[0];
      const text = !single ? won + " of " + all.length + " beaten" : p === null ? "no verdict" : percent(p);
      const mark = single && p > 0.5 ? " ▲" : "";
      const value = make("dd", single && p !== null && p > 0.5 ? "gain" : "", text + mark);
      if (mark) value.append(make("span", "unseen", " preferred"));
      list.append(make("dt", "", judge), value);
    });
    return list;
  }

  function answer(sample, place, against, wanted) {
    const name = data.checkpoints[place];
    const card = make("section", "answer");
    const title = make("h4", "", "");
    const own = make("span", "", name);
    own.dir = "auto";
    title.append(own);
    if (sample.finished[place] === false) title.append(make("span", "tag", "cut at the limit"));
    card.append(title, textBox(sample.answers[place], "body", "Answer of " + name, wanted));
    const scores = scoresOf(sample, place, against);
    if (scores.childElementCount) card.append(scores);
    return card;
  }

  // What the judges said, of the comparison that is looked at.
  function evidence(sample) {
    const known = filters.left && places.get(left() + " " + right());
    if (!known) return null;
    const told = data.judges.map((judge, number) => [judge, sample.why[number][known[0]]]).filter(([, text]) => text);
    if (!told.length) return null;
    const box = make("details", "evidence");
    box.append(make("summary", "", "What the judges said"));
    for (const [judge, text] of told) {
      const inner = make("pre", "text", text);
      inner.dir = "auto";
      const title = make("h4", "", judge);
      title.dir = "auto";
      box.append(title, inner);
    }
    return box;
  }

  function article(sample, wanted) {
    const box = make("article", "sample");
    box.tabIndex = -1;
    const title = make("h3", "about", "Prompt " + sample.number);
    for (const text of [sample.kind, sample.lang].filter(Boolean)) {
      const own = make("span", "", text);
      own.dir = "auto";
      title.append(" · ", own);
    }
    const last = sample.prompt.length - 1;
    box.append(title, ...sample.prompt.map((message, index) => turn(message, index === last, wanted)));
    const all = !filters.left || (filters.show && filters.show.value === "all");
    const shown = all ? data.checkpoints.map((_, place) => place) : [left(), right()];
    const answers = make("div", all ? "answers" : "answers two");
    for (const place of shown.filter((each) => sample.answers[each])) {
      const against = all ? null : place === left() ? right() : left();
      answers.append(answer(sample, place, against, wanted));
    }
    box.append(answers);
    const said = evidence(sample);
    if (said) box.append(said);
    return box;
  }

  function show() {
    const wanted = query();
    const start = page * PAGE;
    const shown = found.slice(start, start + PAGE);
    at("samples").replaceChildren(...shown.map((sample) => article(sample, wanted)));
    const range = shown.length ? (start + 1) + " to " + (start + shown.length) + " of " : "";
    at("count").textContent = found.length
      ? range + found.length + (found.length < data.samples.length ? " found, " + data.samples.length + " in all" : " prompts")
      : "No prompt fits these filters.";
    pagerState(start);
    stops();
  }

  const previous = make("button", "", "Previous");
  const next = make("button", "", "Next");
  const where = make("span", "soft");

  function pagerState(start) {
    previous.disabled = page === 0;
    next.disabled = start + PAGE >= found.length;
    where.textContent = "Page " + (page + 1) + " of " + Math.max(1, Math.ceil(found.length / PAGE));
    at("pager").hidden = found.length <= PAGE;
  }

  function turnPage(by) {
    const to = page + by;
    if (to < 0 || to * PAGE >= found.length) return false;
    page = to;
    show();
    at("filters").scrollIntoView();
    return true;
  }

  function pager() {
    for (const [button, by] of [[previous, -1], [next, 1]]) {
      button.type = "button";
      button.addEventListener("click", () => turnPage(by));
    }
    at("pager").append(previous, where, next);
  }

  // --- keys, heard only inside of this section, so that they take nothing from whoever reads the rest

  function step(by) {
    const articles = [...at("samples").children];
    const here = articles.findIndex((box) => box.contains(document.activeElement));
    let target = here < 0 ? articles[by > 0 ? 0 : articles.length - 1] : articles[here + by];
    if (!target && here >= 0 && turnPage(by)) {
      const fresh = at("samples").children;
      target = fresh[by > 0 ? 0 : fresh.length - 1];
    }
    if (!target) return;
    target.focus({ preventScroll: true });
    target.scrollIntoView({ block: "start" });
  }

  function unfold() {
    const here = [...at("samples").children].filter((box) => box.contains(document.activeElement));
    const boxes = (here.length ? here : [...at("samples").children]).map((box) => box.querySelector(".evidence"));
    const known = boxes.filter(Boolean);
    const open = known.some((box) => !box.open);
    for (const box of known) box.open = open;
  }

  const KEYS = {
    "/": () => filters.search.focus(),
    j: () => step(1),
    k: () => step(-1),
    e: unfold,
    ArrowLeft: () => turnPage(-1),
    ArrowRight: () => turnPage(1),
  };

  function heard(event) {
    const typing = event.target.matches("input, select, textarea");
    if (typing && event.key === "Escape") at("answers").focus({ preventScroll: true });
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    const act = KEYS[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }

  controls();
  pager();
  apply();
  at("answers").addEventListener("keydown", heard);
})();

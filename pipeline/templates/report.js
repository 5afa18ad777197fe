// The browser of answers. It reads the JSON beside it and writes text nodes only: what a model wrote is never markup.
"use strict";
(() => {
  const PAGE = 5; // prompts shown at once
  const LONG = 6000; // characters of a text shown before the reader asks for the rest
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const filters = {};
  let found = [];
  let page = 0;

  function make(tag, className, text) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  }

  function percent(p) {
    return (100 * p).toFixed(0) + "\u202f%";
  }

  // --- controls

  function field(name, label, control, className) {
    const box = make("label", className || "", label);
    control.name = name;
    box.append(control);
    at("filters").append(box);
    filters[name] = control;
    control.addEventListener(control.tagName === "SELECT" ? "change" : "input", apply);
  }

  function choice(name, label, options) {
    const select = make("select");
    for (const [value, text] of options) {
      const option = make("option", "", text);
      option.value = value;
      select.append(option);
    }
    field(name, label, select);
  }

  function values(key) {
    return [...new Set(data.samples.map((sample) => sample[key]))].filter(Boolean).sort();
  }

  function controls() {
    const search = make("input");
    search.type = "search";
    search.placeholder = "words in a prompt or an answer";
    field("search", "Search", search, "grow");
    for (const [key, label] of [["kind", "Kind"], ["lang", "Language"]]) {
      const known = values(key);
      if (known.length > 1) choice(key, label, [["", "all"], ...known.map((value) => [value, value])]);
    }
    if (data.comparisons.length && data.judges.length) {
      choice("comparison", "Comparison", data.comparisons.map((one, place) => [place, one.key]));
      choice("judge", "Judge", data.judges.map((name, place) => [place, name]));
      choice("outcome", "Outcome", []);
      filters.comparison.addEventListener("change", outcomes);
      outcomes();
    }
    at("filters").addEventListener("submit", (event) => event.preventDefault());
    at("filters").hidden = false;
  }

  // The words of the outcomes name the checkpoints: "dpo lost" rather than "lost".
  function outcomes() {
    const { one, other } = data.comparisons[filters.comparison.value];
    const kept = filters.outcome.selectedIndex;
    const named = [["", "any"], ["won", one + " won"], ["lost", one + " lost"], ["tie", "tie"], ["none", "no verdict"]];
    filters.outcome.replaceChildren(...named.map(([value, text]) => {
      const option = make("option", "", text);
      option.value = value;
      option.title = value === "lost" ? other + " won" : "";
      return option;
    }));
    filters.outcome.selectedIndex = Math.max(0, kept);
  }

  // --- filtering

  const written = new Map();
  function wordsOf(sample) {
    if (!written.has(sample)) {
      const turns = sample.prompt.map((message) => message.content);
      written.set(sample, [...turns, ...Object.values(sample.answers)].join("\n").toLowerCase());
    }
    return written.get(sample);
  }

  function outcomeOf(sample) {
    const scores = sample.scores[data.judges[filters.judge.value]] || {};
    const p = scores[data.comparisons[filters.comparison.value].key];
    if (p === null || p === undefined) return "none";
    return p > 0.5 ? "won" : p < 0.5 ? "lost" : "tie";
  }

  function fits(sample, query) {
    return (!filters.kind || !filters.kind.value || sample.kind === filters.kind.value)
      && (!filters.lang || !filters.lang.value || sample.lang === filters.lang.value)
      && (!filters.outcome || !filters.outcome.value || outcomeOf(sample) === filters.outcome.value)
      && (!query || wordsOf(sample).includes(query));
  }

  function query() {
    return filters.search.value.trim().toLowerCase();
  }

  function apply() {
    const wanted = query();
    found = data.samples.map((sample, place) => [sample, place]).filter(([sample]) => fits(sample, wanted));
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

  function textBox(text, className, wanted) {
    const box = make("div", className);
    const inner = make("div", "text");
    inner.dir = "auto";
    box.append(inner);
    write(inner, text.slice(0, LONG), wanted);
    if (text.length > LONG) {
      const more = make("button", "link", "Show all " + text.length.toLocaleString("en") + " characters");
      more.type = "button";
      more.addEventListener("click", () => {
        inner.replaceChildren();
        write(inner, text, query());
        more.remove();
        box.focus();
      });
      box.append(more);
    }
    return box;
  }

  function turn(message, last, wanted) {
    const box = textBox(message.content, "turn" + (last ? " asked" : ""), wanted);
    if (!last) box.prepend(make("span", "role", message.role));
    return box;
  }

  function scoresOf(sample, name) {
    const list = make("dl", "scores");
    for (const { key, one, other } of data.comparisons.filter((each) => each.one === name)) {
      for (const judge of data.judges) {
        const p = (sample.scores[judge] || {})[key];
        if (p === undefined) continue;
        const tone = p === null || p === 0.5 ? "" : p > 0.5 ? "gain" : "loss";
        const value = make("dd", tone, p === null ? "no verdict" : percent(p));
        list.append(make("dt", "", "over " + other + ", " + judge), value);
        value.title = "Probability that " + one + " is better than " + other;
      }
    }
    return list;
  }

  function answer(sample, name, wanted) {
    const card = make("section", "answer");
    const title = make("h3", "", name);
    if (sample.finished[name] === false) title.append(make("span", "tag", "cut at the limit"));
    const body = textBox(sample.answers[name], "body", wanted);
    body.setAttribute("aria-label", "Answer of " + name);
    card.append(title, body);
    const scores = scoresOf(sample, name);
    if (scores.childElementCount) card.append(scores);
    return card;
  }

  function article(sample, place, wanted) {
    const box = make("article", "sample");
    const about = ["Prompt " + (place + 1), sample.kind, sample.lang].filter(Boolean).join(" · ");
    const last = sample.prompt.length - 1;
    box.append(make("p", "about", about));
    box.append(...sample.prompt.map((message, index) => turn(message, index === last, wanted)));
    const answers = make("div", "answers");
    const names = data.checkpoints.filter((name) => Object.hasOwn(sample.answers, name));
    answers.append(...names.map((name) => answer(sample, name, wanted)));
    box.append(answers);
    return box;
  }

  function show() {
    const wanted = query();
    const start = page * PAGE;
    const shown = found.slice(start, start + PAGE);
    at("samples").replaceChildren(...shown.map(([sample, place]) => article(sample, place, wanted)));
    for (const box of at("samples").querySelectorAll(".body, .turn")) {
      if (box.scrollHeight > box.clientHeight + 1) box.tabIndex = 0; // so that the keyboard can scroll it
    }
    const range = shown.length ? (start + 1) + " to " + (start + shown.length) + " of " : "";
    at("count").textContent = found.length
      ? range + found.length + (found.length < data.samples.length ? " found, " + data.samples.length + " in all" : " prompts")
      : "No prompt fits these filters.";
    pagerState(start);
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

  function pager() {
    for (const [button, by] of [[previous, -1], [next, 1]]) {
      button.type = "button";
      button.addEventListener("click", () => {
        page += by;
        show();
        at("answers").scrollIntoView();
      });
    }
    at("pager").append(previous, where, next);
  }

  controls();
  pager();
  apply();
  addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details")) details.open = true;
  });
})();

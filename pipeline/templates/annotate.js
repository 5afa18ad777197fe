// The page of votes. What a model wrote becomes text nodes only, and a vote counts as cast when the server says so.
"use strict";
(() => {
  const RETRY_MS = 2000; // between attempts while the server does not answer
  const words = JSON.parse(document.body.dataset.words);
  const at = (id) => document.getElementById(id);
  let state = null; // what the server said last
  let busy = false;

  // A tab keeps its word when it is loaded again, so that it gets its pair back; a name is kept for the next time.
  const page = kept(sessionStorage, "page") || keep(sessionStorage, "page", random());
  let annotator = kept(localStorage, "annotator") || "";

  function kept(storage, key) {
    try { return storage.getItem(key); } catch { return null; }
  }

  function keep(storage, key, value) {
    try { storage.setItem(key, value); } catch { /* a browser that keeps nothing: it is asked again */ }
    return value;
  }

  function random() {
    return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  }

  function fill(sentence, values) {
    return sentence.replace(/\{(\w+)\}/g, (_, name) => values[name]);
  }

  function make(tag, className, text) {
    const node = document.createElement(tag);
    node.className = className;
    node.textContent = text;
    return node;
  }

  // --- asking the server

  async function post(what, more) {
    const body = JSON.stringify({ annotator, page, ...more });
    for (;;) {
      let reply;
      try {
        reply = await fetch(what, { method: "POST", headers: { "Content-Type": "application/json" }, body });
        const told = await reply.json();
        if (reply.ok) {
          alarm("");
          return told;
        }
        alarm(words[told.error] || words.refused);
        return told.error === "bad_name" ? "bad_name" : null;
      } catch {
        // Also a reply that is no JSON: whoever answers there is not our server, or no longer knows us.
        alarm(reply && !reply.ok ? words.refused : words.failed);
        if (reply && !reply.ok) return null;
        await new Promise((done) => setTimeout(done, RETRY_MS));
      }
    }
  }

  async function act(what, more) {
    if (busy) return;
    busy = true;
    at("question").setAttribute("aria-busy", "true");
    at("status").textContent = what === "next" ? "" : words.saving;
    const told = await post(what, more);
    busy = false;
    at("question").removeAttribute("aria-busy");
    if (told && told !== "bad_name") show(told, what);
    else at("status").textContent = "";
    if (told === "bad_name") askName();
  }

  function alarm(text) {
    at("alarm").textContent = text;
    at("alarm").hidden = !text;
  }

  // --- showing

  function show(told, what) {
    state = told;
    at("who").hidden = true;
    at("work").hidden = false;
    at("me").hidden = false;
    at("name").textContent = annotator;
    progress(told.progress);
    at("undo").disabled = !told.last;
    at("question").hidden = !told.question;
    at("finished").hidden = Boolean(told.question);
    for (const button of choices()) {
      button.disabled = !told.question;
      button.classList.toggle("chosen", Boolean(told.undone) && told.undone.choice === button.dataset.choice);
    }
    at("note").disabled = !told.question;
    at("note").value = told.undone ? told.undone.note : "";
    at("status").textContent = said(told, what);
    if (told.question) question(told.question);
    // The next thing to read: for a screen reader, and so that keys work after a click.
    at(told.question ? "question" : "finished").focus({ preventScroll: true });
    window.scrollTo(0, 0);
  }

  function said(told, what) {
    if (told.undone) return fill(words.undone, { choice: words[told.undone.choice] });
    return what === "vote" ? words.saved : "";
  }

  function progress(counts) {
    const parts = [fill(words.progress, counts), fill(words.mine, counts)];
    if (counts.skipped) parts.push(fill(words.skipped, counts));
    at("count").textContent = parts.join(" · ");
    at("bar").max = counts.needed;
    at("bar").value = counts.done;
  }

  function question(asked) {
    const several = asked.messages.length > 1;
    at("messages").replaceChildren(...asked.messages.map(([role, content]) => {
      const turn = make("div", "turn", "");
      if (several) turn.append(make("span", "role", words[role]));
      const text = make("div", "text", content);
      text.dir = "auto";
      text.lang = asked.lang;
      turn.append(text);
      return turn;
    }));
    at("messages").scrollTop = at("messages").scrollHeight;
    for (const side of ["left", "right"]) {
      at(side).textContent = asked[side];
      at(side).lang = asked.lang;
    }
  }

  // --- hearing

  const choices = () => document.querySelectorAll("button[data-choice]");

  function vote(choice) {
    if (state && state.question) act("vote", { pair: state.question.pair, choice, note: at("note").value });
  }

  function undo() {
    if (state && state.last) act("undo", { pair: state.last });
  }

  function askName() {
    state = null;
    at("work").hidden = true;
    at("me").hidden = true;
    at("who").hidden = false;
    at("annotator").value = annotator;
    at("annotator").focus();
  }

  const KEYS = { ArrowLeft: "left", ArrowRight: "right", 1: "left", 2: "right", "=": "tie", s: "skip" };

  document.addEventListener("keydown", (event) => {
    const typing = event.target instanceof HTMLInputElement;
    if (typing && event.key === "Escape") event.target.blur();
    // A key that is held down is one vote, and a browser's own shortcut is none.
    if (typing || event.repeat || event.ctrlKey || event.metaKey || event.altKey || at("work").hidden) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (KEYS[key]) vote(KEYS[key]);
    else if (key === "u") undo();
    else if (key === "n") at("note").focus();
    else return;
    event.preventDefault();
  });

  for (const button of choices()) button.addEventListener("click", () => vote(button.dataset.choice));
  at("undo").addEventListener("click", undo);
  at("me").addEventListener("click", () => { if (!busy) askName(); });
  at("who").addEventListener("submit", (event) => {
    event.preventDefault();
    annotator = keep(localStorage, "annotator", at("annotator").value.trim());
    act("next", {});
  });

  if (annotator) act("next", {});
  else askName();
})();

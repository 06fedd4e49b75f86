"use strict";

const read = (id) => JSON.parse(document.getElementById(id).textContent);

// The slider: one prompt, its answers from the lowest goal to the highest.
const prompts = document.getElementById("prompt");
if (prompts) {
  const { models, prompts: all } = read("answers-json");
  const goal = document.getElementById("goal");
  const set = (id, text) => { document.getElementById(id).textContent = text; };
  const made = (name, text, kind) => {
    const element = document.createElement(name);
    element.textContent = text;  // never as HTML: a response may hold any text
    if (kind) element.className = kind;
    element.dir = "auto";
    return element;
  };
  const show = () => {
    const { goals, answers } = all[prompts.value];
    const label = goals[goal.value];
    set("goal-said", label);
    goal.setAttribute("aria-valuetext", label === "no goal" ? label : `goal ${label}`);
    document.getElementById("shown").replaceChildren(...models.map((model, m) => {
      const card = document.createElement("article");
      card.append(made("h3", model));
      const found = answers[goal.value][m];
      if (!found.length) card.append(made("p", "No answer at this goal.", "quiet"));
      for (const { text, score } of found) {
        if (score !== null) card.append(made("p", `score ${+score.toPrecision(4)}`, "quiet"));
        card.append(made("blockquote", text || "(empty)", "text"));
      }
      return card;
    }));
  };
  const choose = () => {
    const { text, goals } = all[prompts.value];
    const share = goal.max > 0 ? goal.value / goal.max : 0;
    goal.max = goals.length - 1;
    goal.value = Math.round(share * goal.max);
    set("prompt-text", text);
    set("lowest", goals[0]);
    set("highest", goals.length > 1 ? goals[goals.length - 1] : "");
    show();
  };
  const move = (by) => {
    prompts.value = (Number(prompts.value) + by + all.length) % all.length;
    choose();
  };
  goal.addEventListener("input", show);
  prompts.addEventListener("change", choose);
  document.getElementById("before").addEventListener("click", () => move(-1));
  document.getElementById("after").addEventListener("click", () => move(1));
  prompts.value = 0;
  goal.value = 0;
  choose();
}

// The comparison: runs can be taken out of the pictures.
for (const box of document.querySelectorAll("[data-series]")) {
  box.addEventListener("change", () => {
    for (const line of document.querySelectorAll(`.series-${box.dataset.series}`)) {
      line.style.display = box.checked ? "" : "none";
    }
  });
}

// The numbers as files, from what the page holds.
for (const button of document.querySelectorAll("[data-saves]")) {
  button.addEventListener("click", () => {
    const isCsv = button.dataset.saves.endsWith(".csv");
    const text = isCsv ? read("numbers-csv") : JSON.stringify(read("numbers-json"), null, 2);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: isCsv ? "text/csv" : "application/json" }));
    link.download = button.dataset.saves;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
}

// On paper everything is open.
const opened = [];
addEventListener("beforeprint", () => {
  for (const each of document.querySelectorAll("details:not([open])")) { each.open = true; opened.push(each); }
});
addEventListener("afterprint", () => { while (opened.length) opened.pop().open = false; });

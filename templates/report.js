"use strict";
// Notes of pictures: shown where the pointer is, and for the arrow keys while a picture has the focus.
(() => {
  const tip = document.getElementById("tip");
  const hide = () => { tip.hidden = true; };
  const show = (text, x, y) => {
    if (tip.textContent !== text) tip.textContent = text;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(4, Math.min(x + 14, innerWidth - box.width - 8)) + "px";
    tip.style.top = (y + 18 + box.height > innerHeight ? Math.max(4, y - box.height - 10) : y + 18) + "px";
  };
  for (const svg of document.querySelectorAll("svg")) {
    const marks = [];
    let last = null;
    for (const title of [...svg.querySelectorAll("title")]) {
      const mark = title.parentNode;
      mark.dataset.note = title.textContent;
      title.remove();
      if (mark.dataset.note !== last) marks.push(mark);
      last = mark.dataset.note;
    }
    if (!marks.length) continue;
    let at = -1;
    const go = (to) => {
      if (at >= 0) marks[at].classList.remove("on");
      at = Math.max(0, Math.min(marks.length - 1, to));
      marks[at].classList.add("on");
      marks[at].scrollIntoView({ block: "nearest", inline: "nearest" });
      const box = marks[at].getBoundingClientRect();
      show(marks[at].dataset.note, Math.max(0, box.left), Math.min(box.bottom, innerHeight - 60) - 16);
    };
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, PageDown: 10, PageUp: -10 };
    svg.tabIndex = 0;
    svg.setAttribute("role", "group");
    const caption = svg.closest("figure")?.querySelector("figcaption")?.textContent ?? "";
    svg.setAttribute("aria-label", caption + ": arrow keys name its parts");
    svg.addEventListener("keydown", (event) => {
      if (event.altKey || event.ctrlKey || event.metaKey) return;
      if (event.key in steps) go(at + steps[event.key]);
      else if (event.key === "Home") go(0);
      else if (event.key === "End") go(marks.length - 1);
      else if (event.key === "Escape") { hide(); return; }
      else return;
      event.preventDefault();
    });
    svg.addEventListener("blur", () => {
      if (at >= 0) marks[at].classList.remove("on");
      hide();
    });
    const point = (event) => {
      const mark = event.target.closest("[data-note]");
      if (mark) show(mark.dataset.note, event.clientX, event.clientY); else hide();
    };
    svg.addEventListener("pointermove", point);
    svg.addEventListener("pointerdown", point);
    svg.addEventListener("pointerleave", hide);
  }
})();

"""How the page looks, and the small script that it can do without."""

from base64 import b64encode
from hashlib import sha256

STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --back: #fff; --quiet: #57606a; --line: #d1d9e0;
  --card: #f6f8fa; --bad: #b3261e; --warn: #7a4f00; --heat: #f5b77d; --down: #a9e5bb; --up: #ffc2bb;
  --run0: #0b5cc4; --run1: #b04d08; --run2: #1a7a3d; --run3: #7d3fc2; --run4: #b81f5c;
  --run5: #0b6f82; }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --back: #0d1117; --quiet: #9aa3ad;
  --line: #3d444d; --card: #151b23; --bad: #ff8a80; --warn: #e3b341; --heat: #8a4b12;
  --down: #14532d; --up: #7f1d1d; --run0: #6cb2ff; --run1: #ffa45c; --run2: #5fd38d;
  --run3: #c9a0ff; --run4: #ff86b0; --run5: #5ad1e0; } }
* { box-sizing: border-box; }
body { color: var(--text); background: var(--back); max-width: 84rem; margin: 0 auto;
  padding: 1rem; font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: .4rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
p { margin: .4rem 0; max-width: 60rem; overflow-wrap: anywhere; }
.quiet { color: var(--quiet); } .bad { color: var(--bad); } .warn { color: var(--warn); }
a { color: inherit; } nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; }
summary { cursor: pointer; font-weight: 600; padding: .3rem 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; } td, th { padding: .2rem .6rem; text-align: right;
  vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: 600; } td:first-child, th:first-child { text-align: left; padding-left: 0; }
table.words td, table.words th { text-align: left; }
table.words td { overflow-wrap: break-word; } table.words tbody th { white-space: nowrap; }
thead th { vertical-align: bottom; }
tbody th { font-weight: normal; color: var(--quiet); }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--card); padding: .6rem .8rem;
  border-radius: 6px; font: 13px/1.6 ui-monospace, monospace; margin: .4rem 0; }
.charts { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill,
  minmax(min(100%, 21rem), 1fr)); }
figure { margin: 0; background: var(--card); border-radius: 8px; padding: .6rem; min-width: 0; }
figure.wide { grid-column: 1 / -1; } figcaption { font-weight: 600; }
svg.chart { width: 100%; height: auto; display: block; font: 12px system-ui, sans-serif; }
svg text { fill: var(--text); } svg text.quiet { fill: var(--quiet); }
svg .grid { stroke: var(--line); stroke-width: .7; } svg .axis { stroke: var(--quiet); }
svg path { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
svg path.raw { stroke-width: .9; opacity: .45; } svg path.marks { stroke-width: 1.1; }
svg path.limit { stroke-width: 1.4; }
svg path.mark { stroke: var(--card); stroke-width: .8; }
svg .strip { fill: transparent; } svg .cross { stroke: var(--quiet); stroke-dasharray: 2 2; }
.run0 { stroke: var(--run0); } .run1 { stroke: var(--run1); } .run2 { stroke: var(--run2); }
.run3 { stroke: var(--run3); } .run4 { stroke: var(--run4); } .run5 { stroke: var(--run5); }
.mark.run0 { fill: var(--run0); } .mark.run1 { fill: var(--run1); } .mark.run2 { fill: var(--run2);}
.mark.run3 { fill: var(--run3); } .mark.run4 { fill: var(--run4); } .mark.run5 { fill: var(--run5);}
.narrow { display: none; }
output { display: block; min-height: 1.3em; font-size: 13px; line-height: 1.3; color: var(--quiet);
  overflow-wrap: anywhere; }
output.many { min-height: 2.6em; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; padding: 0; margin: .4rem 0;
  list-style: none; } .legend svg { width: 34px; height: 12px; vertical-align: middle; }
.legend li { overflow-wrap: anywhere; }
td.heat { background: color-mix(in srgb, var(--heat) var(--share), transparent);
  font-variant-numeric: tabular-nums; border: 1px solid var(--back); }
td.dead { outline: 2px solid var(--bad); outline-offset: -2px; }
.tokens span { border-radius: 2px; } .tokens .d, b.d { background: color-mix(in srgb,
  var(--down) var(--share, 100%), transparent); } .tokens .u, b.u { background: color-mix(in srgb,
  var(--up) var(--share, 100%), transparent); text-decoration: underline; }
.tokens span:hover, .tokens span:focus { outline: 1px solid var(--text); }
.tokens .x { color: var(--quiet); }
.differs { font-weight: 600; }
@media (max-width: 48rem) { .wide-only { display: none; } .narrow { display: block; } }
@media (max-width: 40rem) {
  td, th { padding: .15rem .35rem; } body { padding: .6rem; } table.map { font-size: 12px; }
  table.map td { padding: .1rem .2rem; } table.map thead th:not(:first-child) {
  writing-mode: vertical-rl; text-align: right; padding: .3rem .1rem; }
  table.words tbody th { white-space: normal; } }
@media print { details > * { display: block; } }
"""

SCRIPT = """
for (const figure of document.querySelectorAll('figure')) {
  const out = figure.querySelector('output'), first = out && out.textContent;
  for (const svg of figure.querySelectorAll('svg.chart')) {
    const cross = svg.querySelector('.cross'), strips = [...svg.querySelectorAll('.strip')];
    const said = strips.map(strip => strip.querySelector('title').textContent);
    let at = -1;
    const show = i => {
      at = i;
      const x = i < 0 ? '-9' : strips[i].dataset.x;
      cross.setAttribute('x1', x); cross.setAttribute('x2', x);
      if (out) out.textContent = i < 0 ? first : said[i];
    };
    svg.addEventListener('pointermove', event => {
      const i = strips.indexOf(event.target.closest('.strip'));
      if (i >= 0) show(i);
    });
    svg.addEventListener('pointerleave', event => { if (event.pointerType === 'mouse') show(-1); });
    svg.tabIndex = 0;
    svg.addEventListener('keydown', event => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step || !strips.length) return;
      event.preventDefault();
      show(Math.max(0, Math.min(strips.length - 1, at + step)));
    });
  }
}
for (const tokens of document.querySelectorAll('.tokens')) {
  const out = tokens.parentElement.querySelector('output');
  tokens.addEventListener('click', event => { out.textContent = event.target.title || ''; });
}
"""

POLICY = ("default-src 'none'; style-src 'unsafe-inline'; script-src "
          f"'sha256-{b64encode(sha256(SCRIPT.encode()).digest()).decode()}'")
"""What the browser is told to allow: this style and this script, nothing from anywhere."""

"""How the page looks."""

# Both colour schemes; the accent is that of the figures.
CSS = """
:root { --accent: #2563a8; --ink: #1d2733; --soft: #65717f; --line: #dfe4ea; --paper: #ffffff;
  --ground: #f4f6f9; --empty: #e2e6ec; --right: #1d7f45; --wrong: #c4262e; }
.dark { --accent: #6ea8e6; --ink: #e8edf3; --soft: #97a3b2; --line: #2b3542; --paper: #18202b;
  --ground: #0f151d; --empty: #232d3a; --right: #5fcf8c; --wrong: #ff7a7f; }
.gradio-container { max-width: 1320px !important; margin: 0 auto !important;
  padding: 0 24px 40px !important; }
html, body, gradio-app, .gradio-container { background: var(--ground) !important; }
#title { display: flex; align-items: baseline; gap: 14px; padding: 22px 2px 6px;
  color: var(--ink); }
#title h1 { font-size: 22px; font-weight: 650; letter-spacing: -0.01em; margin: 0;
  color: var(--ink); }
#title span { color: var(--soft); font-size: 13.5px; }
#asking { background: var(--paper); border: 1px solid var(--line); border-radius: 14px;
  padding: 18px; gap: 14px; }
#asking .block, #asking .form { border: none !important; box-shadow: none !important;
  background: transparent !important; }
#asking .block { padding: 0 !important; overflow: visible; }
#asking .form { gap: 14px; }
#asking input, #asking textarea { border-radius: 9px !important; }
#menus .form { display: grid; grid-template-columns: repeat(6, 1fr); gap: 10px; }
#menus .form > * { grid-column: span 2; min-width: 0 !important; }
#menus .form > *:nth-child(4n) { grid-column: span 3; }
#menus .form > *:last-child { grid-column: span 3; }
button.primary { background: var(--accent) !important; }
.gradio-container { --color-accent: var(--accent); --color-accent-soft: var(--empty); }
#stage .html-container, #start .html-container, #run .html-container { padding: 0 !important; }
#longer { border-radius: 10px; border: 1px solid var(--line); background: var(--paper);
  color: var(--accent); font-weight: 600; }
#longer:hover { border-color: var(--accent); }
#actions button { border-radius: 10px !important; font-weight: 600; }
#hint { color: var(--soft); font-size: 12.5px; }
.fieldError { color: var(--wrong); font-size: 13px; margin: 2px 0 0; }
.start { display: flex; gap: 10px; align-items: center; color: var(--soft); font-size: 13px; }
.start img { width: 56px; height: 56px; object-fit: cover; border-radius: 8px;
  border: 1px solid var(--line); image-rendering: pixelated; }

.stage { background: var(--paper); border: 1px solid var(--line); border-radius: 14px;
  padding: 18px; min-height: 470px; color: var(--ink); }
.stage .notice { display: flex; flex-direction: column; align-items: center;
  justify-content: center;
  gap: 18px; min-height: 430px; color: var(--soft); font-size: 15px; text-align: center; }
.stage .notice p { max-width: 34em; margin: 0; color: var(--soft); }
.reel { width: 132px; height: 44px; border-radius: 6px; opacity: .9; background:
  repeating-linear-gradient(90deg, var(--empty) 0 28px, transparent 28px 34px); }
.spinner { width: 34px; height: 34px; border-radius: 50%; border: 3px solid var(--empty);
  border-top-color: var(--accent); animation: turn 1s linear infinite; }
@keyframes turn { to { transform: rotate(360deg); } }
.status { display: flex; justify-content: space-between; gap: 18px; font-size: 13.5px; }
.status .prompt { font-weight: 600; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; }
.status .step { color: var(--soft); white-space: nowrap; font-variant-numeric: tabular-nums; }
.bar { display: block; height: 4px; background: var(--empty); border-radius: 2px;
  margin: 9px 0 16px;
  overflow: hidden; }
.bar i { display: block; height: 100%; background: var(--accent); border-radius: 2px;
  transition: width .12s linear; }
.stage[data-state="finished"] > .bar { opacity: .35; }
.cards { display: grid; gap: 16px 18px; grid-template-columns: 1fr 1fr; margin: 0 auto; }
.cards.n3, .cards.n4 { max-width: max(460px, min(100%, 60vh)); }
.cards.n1 { grid-template-columns: minmax(0, 520px); justify-content: center; }
.cards.n5, .cards.n6 { grid-template-columns: repeat(3, 1fr); }
.cards.n7, .cards.n8 { grid-template-columns: repeat(4, 1fr); }
.card { margin: 0; min-width: 0; }
.card .picture { position: relative; width: 100%; aspect-ratio: 1; border-radius: 10px;
  overflow: hidden;
  background: var(--empty); }
.card .picture img, .card .picture video { position: absolute; inset: 0; width: 100%; height: 100%;
  object-fit: cover; margin: 0; display: block; }
.card.sharp img, .card.sharp video { image-rendering: pixelated; }
.card .strip { display: block; width: 100%; margin: 7px 0 0; border-radius: 5px; }
.card figcaption { display: flex; justify-content: space-between; align-items: center;
  color: var(--soft); font-size: 12.5px; margin-top: 6px; min-height: 24px; }
.card .save { color: var(--accent) !important; text-decoration: none !important; font-weight: 600;
  border: 1px solid var(--line); border-radius: 7px; padding: 2px 9px; }
.card .save:hover { border-color: var(--accent); }
.card .reading { font-size: 12.5px; line-height: 1.45; }
.reading .right { color: var(--right); } .reading .wrong { color: var(--wrong);
  text-decoration: line-through; }

.run { background: var(--paper); border: 1px solid var(--line); border-radius: 14px; padding: 20px;
  color: var(--ink); }
.run h3 { font-size: 15px; font-weight: 650; margin: 22px 0 10px; color: var(--ink); }
.run h4 { font-size: 13px; font-weight: 500; color: var(--soft); margin: 0 0 6px; }
.stageRow { display: grid; grid-template-columns: 110px 1fr 120px minmax(200px, auto); gap: 16px;
  align-items: center; font-size: 13.5px; padding: 5px 0; font-variant-numeric: tabular-nums; }
.stageRow .bar { margin: 0; } .stageRow span:last-child { color: var(--soft); }
.stageRow.live b::after { content: ""; display: inline-block; width: 7px; height: 7px;
  margin-left: 7px;
  border-radius: 50%; background: var(--right); animation: pulse 1.6s ease-in-out infinite; }
@keyframes pulse { 50% { opacity: .25; } }
.stageRow.done .bar i { background: var(--right); } .stageRow.idle b { color: var(--soft); }
.run .columns { display: grid; grid-template-columns: minmax(0, 11fr) minmax(0, 9fr); gap: 28px; }
@media (max-width: 900px) { .run .columns { grid-template-columns: 1fr; } }
.run img.curves { width: 100%; background: #fff; border-radius: 8px; margin: 0; }
.byStep { margin-bottom: 16px; } .byStep > div { display: flex; gap: 14px; flex-wrap: wrap; }
.byStep figure { margin: 0; } .byStep img { height: 132px; margin: 0; border-radius: 8px;
  image-rendering: pixelated; }
.byStep figcaption { color: var(--soft); font-size: 12px; margin-top: 4px; }
#report { background: var(--paper); border: 1px solid var(--line); border-radius: 14px;
  padding: 20px !important; }
#report img { max-width: min(100%, 760px); border-radius: 8px; }
footer { display: none !important; }
"""

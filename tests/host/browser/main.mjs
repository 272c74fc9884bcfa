// A user at the keyboard: `node main.mjs job.json` opens ComfyUI in Chromium, does one task after another on one
// page and prints one JSON: {answers: [of each task], complaints: [errors of the page]}.
//
// job: {url, chromium, modules, tasks: [{do, ...}]}; what a task needs and answers stands at its function in TASKS.
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { arrange } from './arrange.mjs'
import { complaints, drop, helpWidths, open, photograph, run, search, watch } from './acts.mjs'
import { media, nodes, notes, view } from './measure.mjs'

const TASKS = {
  // {name, graph, layout} -> the workflow as the frontend writes it into a file.
  export: (page, { item }) => page.evaluate(arrange, item),

  // {file, widgets, opened, ended, fill} -> what is seen before and after a run. `opened` and `ended` name pictures,
  // the first as the frontend opens the workflow; `fill` lets the graph of the second fill the canvas.
  async workflow(page, { file, widgets, opened, ended, fill }) {
    const answer = await drop(page, file)
    const look = async () => ({
      nodes: await page.evaluate(nodes), media: await page.evaluate(media), view: await page.evaluate(view),
    })
    answer.prompt = await page.evaluate(async () => (await app.graphToPrompt()).output)
    answer.before = await look()
    answer.notes = await page.evaluate(notes)
    if (opened) await page.screenshot({ path: opened })
    if (answer.red.length || !widgets) return answer
    answer.end = await run(page, widgets)
    for (const [kind, later] of Object.entries(await complaints(page))) answer[kind].push(...later)
    if (ended) await photograph(page, ended, fill)
    answer.after = await look()
    return answer
  },

  // {file, widgets, node, shot} -> how a run ended, what a type of node showed meanwhile, see `watch`, and at the end;
  // `shot` names a picture that is taken on the way.
  async preview(page, { file, widgets, node, shot }) {
    await drop(page, file)
    return watch(page, widgets, node, shot)
  },

  // {nodes} -> by node: the width of its help page's panel, and what is wider than that.
  help: (page, { nodes }) => helpWidths(page, nodes),

  // {queries} -> by query: the names that the host's node search lists, best first.
  search: (page, { queries }) => search(page, queries),
}

const job = JSON.parse(readFileSync(process.argv[2], 'utf8'))
const { chromium } = createRequire(`${job.modules}/`)('playwright-core')
const browser = await chromium.launch({
  executablePath: job.chromium,
  args: ['--no-sandbox', '--disable-gpu', '--enable-unsafe-swiftshader'],
})
const answers = []
let page
try {
  page = await open(browser, job.url)
  for (const task of job.tasks) answers.push(await TASKS[task.do](page, task))
} finally {
  await browser.close()
}
console.log(JSON.stringify({ answers, complaints: page.complaints }))

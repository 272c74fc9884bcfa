// People before a page from disk: `node browsing.mjs job.json` opens it in Chromium once for each visit, does what the
// visit says and prints one JSON: for each visit {answers: [of each act], asked: [addresses of a network], complaints}.
//
// job: {chromium, modules, address, folder, visits: [{options, acts: [[name, argument], ...]}]}; `options` are those of
// playwright's contexts, and what acts do stands at their functions in ACTS. Visits share nothing.
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'

const job = JSON.parse(readFileSync(process.argv[2], 'utf8'))

const ACTS = {
  press: (page, key) => page.keyboard.press(key),
  type: (page, text) => page.keyboard.type(text),
  tap: (page, selector) => page.tap(selector),
  shot: (page, path) => page.screenshot({ path }).then(() => null),
  wait: (page, time) => page.waitForTimeout(time),
  look: (page) => page.evaluate(look),
  evaluate: (page, text) => page.evaluate(text),

  // Closes the window and opens the page in another one of the same browser.
  async close(page, _, open) {
    await page.close()
    await open()
  },

  // Until both videos are on their way -> how they are shown.
  async watch(page) {
    await page.waitForFunction(() => [...document.querySelectorAll('video')].every((v) => v.currentTime > 0.05))
    return page.evaluate(() =>
      [...document.querySelectorAll('video')].map((video) => {
        const { width, height } = video.getBoundingClientRect()
        return { name: video.dataset.name, width, height, own: [video.videoWidth, video.videoHeight], time: video.duration }
      })
    )
  },

  // Answers by keyboard until nothing is asked any more, `most` times at most -> how often. `prefer`: names of videos,
  // of which one is better wherever it stands; or a key for every question.
  async vote(page, { prefer, most = Infinity }) {
    for (let given = 0; ; given++) {
      const seen = await page.evaluate(look)
      if (seen.screen !== 'vote' || given === most) return given
      const side = seen.names.findIndex((name) => prefer.includes(name))
      await page.keyboard.press(Array.isArray(prefer) ? ['ArrowLeft', 'ArrowRight'][side] : prefer)
    }
  },

  // Saves by the keyboard -> the file's name; it lies in the job's folder.
  async save(page, key) {
    const [download] = await Promise.all([page.waitForEvent('download'), page.keyboard.press(key)])
    await download.saveAs(`${job.folder}/${download.suggestedFilename()}`)
    return download.suggestedFilename()
  },
}

// Runs in the page: what is on it.
function look() {
  const screen = [...document.querySelectorAll('main')].find((main) => !main.hidden)
  return {
    screen: screen.id,
    text: screen.innerText,
    names: [...document.querySelectorAll('video')].map((video) => video.dataset.name),
    chosen: [...document.querySelectorAll('[aria-pressed=true]')].map((button) => button.dataset.answer),
    broken: [...document.querySelectorAll('.broken')].filter((each) => !each.hidden).length,
    wide: document.documentElement.scrollWidth > innerWidth,
    pixels: [document.documentElement.scrollHeight, innerHeight],
  }
}

const { chromium } = createRequire(`${job.modules}/`)('playwright-core')
const browser = await chromium.launch({
  executablePath: job.chromium,
  args: ['--no-sandbox', '--disable-gpu', '--enable-unsafe-swiftshader'],
})
const visits = []
try {
  for (const { options = {}, acts } of job.visits) {
    const context = await browser.newContext(options)
    const visit = { answers: [], asked: [], complaints: [] }
    visits.push(visit)
    let page
    const open = async () => {
      page = await context.newPage()
      page.setDefaultTimeout(60_000)
      page.on('pageerror', (error) => visit.complaints.push(String(error)))
      page.on('console', (message) => message.type() === 'error' && visit.complaints.push(message.text()))
      page.on('request', (request) => /^(file|data|blob):/.test(request.url()) || visit.asked.push(request.url()))
      await page.goto(job.address)
    }
    await open()
    for (const [name, argument] of acts) visit.answers.push((await ACTS[name](page, argument, open)) ?? null)
    await context.close()
  }
} finally {
  await browser.close()
}
console.log(JSON.stringify(visits))

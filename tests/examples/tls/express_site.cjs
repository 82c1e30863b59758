// node express_site.cjs 3000
const app = require("express")();
app.set("trust proxy", "loopback");
app.get("/", (request, response) => response.type("text").send(request.protocol));
app.listen(Number(process.argv[2]), "127.0.0.1");
